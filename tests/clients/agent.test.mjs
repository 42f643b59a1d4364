import assert from 'node:assert/strict'
import { test } from 'node:test'

import { verifyEvents } from '@ag-ui/client'
import { lastValueFrom, toArray } from 'rxjs'

import { SteadwireAgent } from './agui/index.js'
import { ThreadServer, input, run, until } from './thread_server.mjs'

const WORDS = Array.from({ length: 30 }, (_, n) => `word${n} `)
const EVENTS = run(WORDS)

async function served(options, use) {
    const server = await new ThreadServer(EVENTS, options).listen()
    try {
        await use(server, new SteadwireAgent({ url: server.url, agent: 'demo', threadId: 't', delay: () => 0 }))
    } finally {
        await server.close()
    }
}

for (const cutAfter of [1, 2, 5, Infinity]) {
    test(`verifyEvents accepts a run that is cut after each ${cutAfter} events`, async () => {
        await served({ cutAfter }, async (server, agent) => {
            const verified = agent.run(input()).pipe(verifyEvents(), toArray())
            assert.deepEqual(await lastValueFrom(verified), EVENTS)
        })
    })
}

test('runAgent has the whole message, although it was cut in the middle', async () => {
    await served({ cutAfter: 7 }, async (server, agent) => {
        const { newMessages } = await agent.runAgent({ runId: 'r' })
        assert.equal(newMessages.at(-1).content, WORDS.join(''))
        assert.deepEqual([...server.starts], [['r', 1]])
    })
})

test('connectAgent watches a run that somebody else started, to its end', async () => {
    await served({ cutAfter: 7, agentPosition: 5 }, async (server, agent) => {
        server.write()
        const done = agent.connectAgent({ runId: 'other' }, {
            onTextMessageStartEvent: () => server.proceed(),
        })
        const { newMessages } = await done
        assert.equal(newMessages.at(-1).content, WORDS.join(''))
        assert.equal(server.starts.size, 0)
        assert.ok(server.requests.length > 1)
    })
})

test('abortRun cancels on the server', async () => {
    await served({ agentPosition: 5 }, async (server, agent) => {
        await agent.runAgent({ runId: 'r' }, {
            onTextMessageContentEvent: () => {
                agent.abortRun()
                server.proceed()
            },
        })
        await until(() => server.cancelled.includes('r'))
    })
})

test('a clone runs by itself', async () => {
    await served({}, async (server, agent) => {
        const { newMessages } = await agent.clone().runAgent({ runId: 'r' })
        assert.equal(newMessages.at(-1).content, WORDS.join(''))
        assert.deepEqual(agent.messages, [])
    })
})

test('a refused run fails with the reason', async () => {
    await served({}, async (server, agent) => {
        server.answers.push(403)
        await assert.rejects(agent.runAgent({ runId: 'r' }), { message: 'as asked: 403' })
    })
})
