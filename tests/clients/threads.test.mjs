import assert from 'node:assert/strict'
import { test } from 'node:test'

import { Refused, Threads, Unreachable, backoff, serverSentEvents } from './agui/threads.js'
import { ThreadServer, input, run, until } from './thread_server.mjs'

const WORDS = Array.from({ length: 40 }, (_, n) => `${n} é\n`)
const EVENTS = run(WORDS)

async function served(options, use, events = EVENTS) {
    const server = await new ThreadServer(events, options).listen()
    try {
        await use(server, new Threads({ url: server.url, delay: () => 0 }))
    } finally {
        await server.close()
    }
}

async function all(generator) {
    const found = []
    for await (const each of generator) found.push(each)
    return found
}

for (const cutAfter of [1, 2, 3, 7, 44, Infinity]) {
    test(`a run whose responses are cut after ${cutAfter} events is whole`, async () => {
        await served({ cutAfter }, async (server, threads) => {
            assert.deepEqual(await all(threads.run('demo', input())), EVENTS)
            assert.deepEqual([...server.starts], [['r', 1]])
        })
    })

    test(`a viewer whose responses are cut after ${cutAfter} events misses nothing`, async () => {
        await served({ cutAfter, agentPosition: 3 }, async (server, threads) => {
            server.write()
            const stop = new AbortController()
            const offsets = []
            const events = []
            await assert.rejects(async () => {
                for await (const item of threads.watch('t', { signal: stop.signal })) {
                    if (item.reset) {
                        assert.equal(item.offset, 3)
                        events.push(...item.events)
                        server.proceed()
                    } else {
                        offsets.push(item.offset)
                        events.push(item.event)
                    }
                    if (events.length === EVENTS.length) stop.abort(new Error('enough'))
                }
            }, { message: 'enough' })
            assert.deepEqual(events, EVENTS)
            assert.deepEqual(offsets, EVENTS.slice(3).map((_, n) => n + 4))
        })
    })
}

test('a start that broke off before its answer is repeated with the same run id', async () => {
    await served({}, async (server, threads) => {
        server.answers.push('cut', 503)
        assert.deepEqual(await all(threads.run('demo', input())), EVENTS)
        const ids = server.requests.map(({ body }) => JSON.parse(body).runId)
        assert.deepEqual(ids, ['r', 'r', 'r'])
    })
})

test('a refusal is told with its reason, at once', async () => {
    await served({}, async (server, threads) => {
        for (const status of [400, 403, 404, 409]) {
            server.answers.push(status)
            await assert.rejects(all(threads.run('demo', input())), (error) => {
                assert.ok(error instanceof Refused)
                assert.equal(error.status, status)
                assert.equal(error.message, `as asked: ${status}`)
                return true
            })
        }
        assert.equal(server.requests.length, 4)
    })
})

test('a token is asked for each request, and once more when it has expired', async () => {
    await served({ cutAfter: 20 }, async (server) => {
        let asked = 0
        const threads = new Threads({ url: server.url, delay: () => 0, token: async () => `t${++asked}` })
        server.answers.push(401)
        assert.deepEqual(await all(threads.run('demo', input())), EVENTS)
        const sent = server.requests.map(({ headers }) => headers.authorization)
        assert.deepEqual(sent, ['Bearer t1', 'Bearer t2', 'Bearer t3', 'Bearer t4'])
        server.answers.push(401, 401)
        await assert.rejects(threads.snapshot('t'), { status: 401 })
    })
})

test('who is nowhere to be reached is given up in the end', async () => {
    await served({}, async (server) => {
        const threads = new Threads({ url: server.url, delay: () => 0, attempts: 4 })
        server.answers.push(...Array(9).fill('cut'))
        await assert.rejects(all(threads.run('demo', input())), Unreachable)
        assert.equal(server.requests.length, 4)
    })
})

test('a viewer that the history has passed begins anew', async () => {
    await served({ cutAfter: 2, agentPosition: 3 }, async (server, threads) => {
        server.write()
        const stop = new AbortController()
        const kinds = []
        for await (const item of threads.watch('t', { signal: stop.signal })) {
            kinds.push(item.reset ? item.events.length : item.offset)
            if (kinds.length === 1) server.proceed()
            if (kinds.length === 3) server.trimmed = 40
            if (kinds.length === 4) break
        }
        assert.deepEqual(kinds, [3, 4, 5, 44])
    })
})

test('it says how it is connected, and how much was recovered', async () => {
    await served({ cutAfter: 3, agentPosition: 3 }, async (server, threads) => {
        server.write()
        const states = []
        let seen = 0
        for await (const item of threads.watch('t', { onState: (state) => states.push(state) })) {
            if (item.reset) server.proceed(9)
            else seen = item.offset
            if (seen === 9) break
        }
        assert.deepEqual(states.slice(0, 3), [
            { state: 'connecting' },
            { state: 'connected', recovered: 0 },
            { state: 'reconnecting', attempt: 1 },
        ])
    })
})

test('a stream of a living run that is silent counts as cut', async () => {
    await served({ agentPosition: 5 }, async (server) => {
        const threads = new Threads({ url: server.url, delay: () => 0, silence: 20 })
        const found = []
        for await (const event of threads.run('demo', input())) {
            found.push(event)
            // The response of the start stays silent; the next one has the rest.
            if (found.length === 5) {
                server.agentPosition = Infinity
                server.write()
            }
        }
        assert.deepEqual(found, EVENTS)
        assert.ok(server.requests.length > 1)
    })
})

test('a run is cancelled by its id', async () => {
    await served({}, async (server, threads) => {
        await threads.cancel('demo', 'a/b')
        assert.deepEqual(server.cancelled, ['a%2Fb'])
    })
})

test('leaving the loop closes the connection', async () => {
    await served({ agentPosition: 4 }, async (server, threads) => {
        for await (const event of threads.run('demo', input())) {
            if (event.type === 'TEXT_MESSAGE_CONTENT') break
        }
        const connections = () => new Promise((resolve) => {
            server.server.getConnections((_, count) => resolve(count))
        })
        await until(async () => await connections() === 0)
    })
})

test('server-sent events are read whatever the pieces', async () => {
    const text = ': c\r\nid: 1\r\ndata: é\r\ndata:b\r\n\r\nevent: x\ndata\n\nid: 2\rdata: c\r\rdata: lost'
    const bytes = new TextEncoder().encode(text)
    for (const size of [1, 2, 3, 5, 1000]) {
        const pieces = []
        for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size))
        const found = await all(serverSentEvents(new Blob(pieces).stream()))
        assert.deepEqual(found, [
            null,
            { id: '1', event: 'message', data: 'é\nb' },
            { id: '1', event: 'x', data: '' },
            { id: '2', event: 'message', data: 'c' },
        ])
    }
})

test('delays grow to five seconds, and are at random', () => {
    const most = Array.from({ length: 12 }, (_, attempt) => backoff(attempt, () => 1))
    assert.deepEqual(most, [250, 500, 1000, 2000, 4000, 5000, 5000, 5000, 5000, 5000, 5000, 5000])
    assert.equal(backoff(3, () => 0), 0)
})
