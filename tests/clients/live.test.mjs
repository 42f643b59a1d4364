// Against a real server with the simulated agent; STEADWIRE_URL says where.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { verifyEvents } from '@ag-ui/client'
import { Centrifuge } from 'centrifuge'
import { lastValueFrom, tap, toArray } from 'rxjs'
import WebSocket from 'ws'

import { SteadwireAgent, Threads } from './agui/index.js'
import { until } from './thread_server.mjs'

const url = process.env.STEADWIRE_URL
const text = (count) => Array.from({ length: count }, (_, n) => n + 1).join(' ')
const fresh = () => crypto.randomUUID()

function asked(question, threadId) {
    const message = { id: fresh(), role: 'user', content: question }
    return {
        threadId, runId: fresh(), state: {}, messages: [message], tools: [], context: [], forwardedProps: {},
    }
}

function spoken(events) {
    return events.filter(({ type }) => type === 'TEXT_MESSAGE_CONTENT').map(({ delta }) => delta).join('')
}

/** What an agent streams, as the protocol's own verifier lets it through. */
function verified(stream, see = () => {}) {
    return lastValueFrom(stream.pipe(tap(see), verifyEvents(), toArray()))
}

/** A fetch whose streamed answers break after so many pieces. */
function breaking(pieces) {
    const made = { cuts: 0 }
    made.fetch = async (...args) => {
        const response = await fetch(...args)
        if (response.headers.get('content-type')?.startsWith('text/event-stream') !== true) return response
        let left = pieces
        const body = response.body.pipeThrough(new TransformStream({
            transform(piece, controller) {
                if (left === 0) {
                    made.cuts += 1
                    throw new TypeError('cut')
                }
                left -= 1
                controller.enqueue(piece)
            },
        }))
        return new Response(body, { status: response.status, headers: response.headers })
    }
    return made
}

/** A Centrifuge client whose socket can be cut; it comes back after *delay* ms or more. */
function socketed(delay = 10) {
    const made = { socket: null }
    class Socket extends WebSocket {
        constructor(...args) {
            super(...args)
            made.socket = this
        }
    }
    made.client = new Centrifuge(`${url.replace('http', 'ws')}/connection/websocket`, {
        websocket: Socket, minReconnectDelay: delay, maxReconnectDelay: delay + 100,
    })
    made.client.connect()
    return made
}

for (const pieces of [1, 3, 10]) {
    test(`over server-sent events, cut after each ${pieces} pieces`, async () => {
        const link = breaking(pieces)
        const agent = new SteadwireAgent({ url, agent: 'demo', fetch: link.fetch, delay: () => 0, attempts: 200 })
        const events = await verified(agent.run(asked('count to 40', fresh())))
        assert.equal(spoken(events), text(40))
        assert.equal(events.at(-1).type, 'RUN_FINISHED')
        assert.ok(link.cuts > 0)
    })
}

test('over the SDK, cut in mid-stream', async () => {
    const link = socketed(300)  // longer than it takes to say a word: some are missed
    const states = []
    const agent = new SteadwireAgent({
        url, agent: 'demo', centrifuge: link.client, onState: (state) => states.push(state),
    })
    let cuts = 0
    const events = await verified(agent.run(asked('count to 60', fresh())), ({ delta }) => {
        if (delta === '10 ' || delta === '30 ') {
            cuts += 1
            link.socket.terminate()
        }
    })
    const left = link.client.subscriptions()
    link.client.disconnect()  // else a failure would keep this process alive
    assert.equal(spoken(events), text(60))
    assert.equal(cuts, 2)
    const recovered = states.filter(({ state, recovered: n }) => state === 'connected' && n > 0)
    assert.equal(recovered.length, 2)
    assert.deepEqual(left, {})
})

for (const over of ['server-sent events', 'the SDK']) {
    test(`who joins in the middle over ${over} has it all`, async () => {
        const link = over === 'the SDK' ? socketed() : null
        const thread = fresh()
        const starter = new SteadwireAgent({ url, agent: 'demo', threadId: thread })
        const watcher = new SteadwireAgent({
            url, agent: 'demo', threadId: thread, ...(link ? { centrifuge: link.client } : {}),
        })
        let joined
        const events = await verified(starter.run(asked('count to 50', thread)), ({ delta }) => {
            if (delta === '10 ') joined = verified(watcher.connect(asked('', thread)))
        })
        assert.equal(spoken(events), text(50))
        const seen = await joined
        assert.equal(spoken(seen), text(50))
        assert.ok(seen.length < events.length)
        // The client's own reduction of what it joined: the answer is there once.
        const { newMessages } = await watcher.connectAgent()
        const answers = newMessages.filter(({ role }) => role === 'assistant')
        assert.deepEqual(answers.map(({ content }) => content), [text(50)])
        link?.client.disconnect()
    })
}

test('abortRun ends the run for everybody', async () => {
    const thread = fresh()
    const agent = new SteadwireAgent({ url, agent: 'demo', threadId: thread })
    agent.addMessage(asked('count to 2000', thread).messages[0])
    let outcome
    await agent.runAgent({}, {
        onTextMessageContentEvent: () => agent.abortRun(),
        onRunFinishedEvent: (params) => {
            outcome = params.outcome
        },
    })
    assert.equal(outcome, 'cancelled')
    const { events, live } = await new Threads({ url }).snapshot(thread)
    assert.equal(live, '')
    assert.equal(events.at(-1).type, 'RUN_FINISHED')
})

test('two who watch a thread over one socket see the same', async () => {
    const link = socketed()
    const threads = new Threads({ url, centrifuge: link.client })
    const thread = fresh()
    const stop = new AbortController()
    const seen = [[], []]
    const done = seen.map(async (events) => {
        for await (const item of threads.watch(thread, { signal: stop.signal })) {
            if (item.reset) events.length = 0
            events.push(...item.events ?? [item.event])
        }
    })
    await threads.start('demo', asked('count to 20', thread))
    const over = (events) => events.at(-1)?.type === 'RUN_FINISHED'
    await until(() => seen.every(over))
    assert.equal(spoken(seen[0]), text(20))
    assert.equal(spoken(seen[1]), text(20))
    stop.abort(new Error('enough'))
    for (const each of done) await assert.rejects(each, { message: 'enough' })
    assert.deepEqual(link.client.subscriptions(), {})
    link.client.disconnect()
})
