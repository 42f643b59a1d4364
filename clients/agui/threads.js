// Threads of agent runs in Steadwire: start runs, watch them, and lose nothing.
//
// A thread is a log of AG-UI events, each with an offset. Whoever reads it keeps the last
// offset, and after a cut goes on behind it. This module has no dependencies and no build
// step: a plain page imports it as it is. `index.js` beside it makes an agent of npm
// `@ag-ui/client` of it.
//
// What it promises: every event of a thread is handed over once and in order, whatever
// happens to the connection; what cannot be caught up with is replaced by a snapshot, and
// said so. Every wait has an end: `signal` ends it, and so does `attempts` without success.

/** An answer of the server that another attempt would not change. */
export class Refused extends Error {
    constructor(status, text) {
        super(text || `the server answered with status ${status}`)
        this.name = 'Refused'
        this.status = status
    }
}

/** The server could not be reached in as many attempts as there are. */
export class Unreachable extends Error {
    constructor(attempts, cause) {
        super(`no connection after ${attempts} attempts`, { cause })
        this.name = 'Unreachable'
    }
}

const TERMINAL = new Set(['RUN_FINISHED', 'RUN_ERROR'])
const TEMPORARY = new Set([408, 425, 429, 502, 503, 504]) // also a proxy's

/** Whether *event* is the last one of its run. */
export function isTerminal(event) {
    return TERMINAL.has(event.type)
}

/** A delay in ms before attempt number *attempt* (0, 1, …): at most 5 s, at random. */
export function backoff(attempt, random = Math.random) {
    return random() * Math.min(5000, 250 * 2 ** Math.min(attempt, 10))
}

/**
 * Read server-sent events.
 *
 * Yields `{ id, event, data }`; for a comment, which is a sign of life, null.
 */
export async function* serverSentEvents(body) {
    const reader = body.getReader()
    const decoder = new TextDecoder()
    let text = ''
    let id = ''
    let fields = { data: [], event: '' }
    try {
        for (;;) {
            const { value, done } = await reader.read()
            if (done) return // what is not complete does not count
            text += decoder.decode(value, { stream: true })
            const lines = text.split(/\r\n|\n|\r(?=[^])/)
            text = lines.pop()
            for (const line of lines) {
                if (line === '') {
                    if (fields.data.length) {
                        yield { id, event: fields.event || 'message', data: fields.data.join('\n') }
                    }
                    fields = { data: [], event: '' }
                    continue
                }
                const [, name, data] = /^([^:]*):? ?([^]*)$/.exec(line)
                if (name === '') yield null
                else if (name === 'data') fields.data.push(data)
                else if (name === 'event') fields.event = data
                else if (name === 'id' && !data.includes('\0')) id = data
            }
        }
    } finally {
        // Also when nobody wants more: the connection is closed.
        await reader.cancel().catch(() => {})
    }
}

export class Threads {
    #sockets = new Map()

    /**
     * @param options.url Steadwire's address; the page's own by default.
     * @param options.token Returns a token or a ticket (or a promise of it); asked each time.
     * @param options.centrifuge A client of npm `centrifuge`: then events come over its
     *   WebSocket, else over server-sent events.
     * @param options.namespace Of the threads' channels, `runs.namespace` in the settings.
     * @param options.fetch In place of the global one.
     * @param options.attempts Without success, one after another, before it gives up.
     * @param options.delay As `backoff`.
     * @param options.silence ms without a sign of life after which a stream of a living run
     *   counts as cut: the server gives one every 5 s.
     */
    constructor({
        url = globalThis.location?.origin ?? '',
        token = undefined,
        centrifuge = undefined,
        namespace = 'thread',
        fetch = (...args) => globalThis.fetch(...args),
        attempts = 30,
        delay = backoff,
        silence = 15000,
    } = {}) {
        this.url = url.replace(/\/$/, '')
        this.token = token
        this.centrifuge = centrifuge
        this.namespace = namespace
        this.fetch = fetch
        this.attempts = attempts
        this.delay = delay
        this.silence = silence
    }

    /** The name of a thread's channel. */
    channel(thread) {
        return `${this.namespace}:${thread}`
    }

    /**
     * The whole thread, compacted: `{ events, offset, epoch, live, complete }`.
     */
    async snapshot(thread, { signal } = {}) {
        const path = `/agui/threads/${encodeURIComponent(thread)}/snapshot`
        return await (await this.#try((attempt) => this.#request(path, attempt), signal)).json()
    }

    /**
     * Start a run and return; its events come to those who watch the thread.
     *
     * Repeating it with the same run id starts nothing twice.
     */
    async start(agent, input, { signal } = {}) {
        const response = await this.#post(agent, input, signal)
        await response.body?.cancel().catch(() => {}) // which ends nothing
    }

    /**
     * Stop a run: it ends as cancelled, for everybody. Of several servers the one that has
     * the run finds it by itself; name the *thread* for the others.
     */
    async cancel(agent, run, { thread, signal } = {}) {
        const where = thread === undefined ? '' : `?thread=${encodeURIComponent(thread)}`
        const path = `/agui/${encodeURIComponent(agent)}/runs/${encodeURIComponent(run)}/cancel${where}`
        const send = (attempt) => this.#request(path, { ...attempt, method: 'POST' })
        const response = await this.#try(send, signal)
        await response.body?.cancel().catch(() => {})
    }

    /**
     * Start a run, and yield its events until it has ended.
     *
     * Leaving the loop ends nothing: the run goes on, and `watch` finds it again.
     */
    async *run(agent, input, { signal, onState = () => {} } = {}) {
        if (this.centrifuge) {
            const watched = this.watch(input.threadId, { signal, onState })
            let ours = false
            let begun = false
            for await (const item of watched) {
                if (!begun) {
                    begun = true
                    await this.start(agent, input, { signal })
                }
                for (const event of item.events ?? [item.event]) {
                    if (event.type === 'RUN_STARTED') ours = event.runId === input.runId
                    if (!ours) continue
                    yield event
                    if (isTerminal(event)) return
                }
            }
            return
        }
        const open = (cursor, attemptSignal) => cursor
            ? this.#events(input.threadId, { cursor }, attemptSignal)
            : this.#post(agent, input, attemptSignal)
        for await (const { event } of this.#stream(open, { signal, onState, live: true })) {
            yield event
            if (isTerminal(event) && event.runId !== undefined && event.runId !== input.runId) {
                continue
            }
            if (isTerminal(event)) return
        }
    }

    /**
     * Yield the events of a thread from now on, in a form that clients of AG-UI can verify,
     * until the run that lives has ended: what is open is begun again with its text so far.
     */
    async *join(thread, { signal, onState = () => {} } = {}) {
        if (this.centrifuge) {
            for await (const item of this.watch(thread, { signal, onState })) {
                yield* item.events ?? [item.event]
                const last = item.events ? item.events.at(-1) : item.event
                if (last === undefined || isTerminal(last)) return
            }
            return
        }
        const open = (cursor, attemptSignal) => this.#events(
            thread, cursor ? { cursor } : { query: 'from=now' }, attemptSignal,
        )
        const options = { signal, onState, live: true, endsWithResponse: true }
        let begin = [] // what is cut off within it begins anew
        for await (const { event, offset, first } of this.#stream(open, options)) {
            if (first) begin = []
            begin.push(event)
            if (!offset) continue
            yield* begin
            if (isTerminal(event)) return
            begin = []
        }
    }

    /**
     * Yield what a thread has, and what comes, until `signal` says to stop.
     *
     * The first item is `{ events, offset, reset: true }`: the thread so far, compacted. Each
     * further one is `{ event, offset }`; or `reset` again, in place of all that was before,
     * when more was missed than the server still has.
     *
     * `onState` is called with `{ state: 'connecting' }`, `{ state: 'connected', recovered }`
     * where `recovered` is the number of events that were missed and came, or
     * `{ state: 'reconnecting', attempt }`. Over a WebSocket, `onSign` is called with events
     * that are in no log: somebody types.
     */
    async *watch(thread, { signal, onState = () => {}, onSign = () => {} } = {}) {
        if (this.centrifuge) {
            yield* this.#watchChannel(thread, signal, onState, onSign)
            return
        }
        for (;;) {
            onState({ state: 'connecting' })
            const snapshot = await this.snapshot(thread, { signal })
            yield { events: snapshot.events, offset: snapshot.offset, reset: true }
            const query = `epoch=${encodeURIComponent(snapshot.epoch)}`
            const open = (cursor, attemptSignal) => this.#events(thread, { cursor, query }, attemptSignal)
            const last = snapshot.events.at(-1)
            const options = {
                signal,
                onState,
                cursor: String(snapshot.offset),
                live: last !== undefined && !isTerminal(last),
            }
            try {
                yield* this.#stream(open, options)
                return
            } catch (error) {
                if (!(error instanceof Refused && error.status === 410)) throw error
                // The history has gone on without us: begin anew.
            }
        }
    }

    // One request, with what the user may show.

    async #request(path, { signal, headers = {}, ...init }) {
        const token = await this.token?.()
        const response = await this.fetch(`${this.url}${path}`, {
            ...init,
            headers: { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...headers },
            signal,
            cache: 'no-store',
        })
        if (response.ok) return response
        const text = await response.text().catch(() => '')
        let said = ''
        try {
            const { error, title, description, message } = JSON.parse(text)
            said = message ?? error?.message ?? description ?? title ?? ''
        } catch {
            // Not ours: a proxy's.
        }
        const refused = new Refused(response.status, said)
        refused.wait = 1000 * Number(response.headers.get('Retry-After') ?? NaN)
        throw refused
    }

    #post(agent, input, signal) {
        const init = {
            method: 'POST',
            headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' },
            body: JSON.stringify(input),
        }
        const path = `/agui/${encodeURIComponent(agent)}`
        return this.#try((attempt) => this.#request(path, { ...init, ...attempt }), signal)
    }

    #events(thread, { cursor, query }, signal) {
        const path = `/agui/threads/${encodeURIComponent(thread)}/events${query ? `?${query}` : ''}`
        const headers = { Accept: 'text/event-stream' }
        if (cursor) headers['Last-Event-ID'] = cursor
        return this.#request(path, { headers, signal })
    }

    /** Call *send* until it succeeds or is refused for good. */
    async #try(send, signal) {
        let expired = false
        for (let attempt = 0; ; attempt += 1) {
            signal?.throwIfAborted()
            try {
                return await send({ signal })
            } catch (error) {
                signal?.throwIfAborted()
                if (error instanceof Refused && error.status === 401 && this.token && !expired) {
                    expired = true // a ticket is good for one request, a token for a time
                    continue
                }
                if (!isTemporary(error)) throw error
                if (attempt + 1 >= this.attempts) throw new Unreachable(attempt + 1, error)
                await wait(pause(error, attempt, this.delay), signal)
            }
        }
    }

    /**
     * Yield `{ event, offset }` of responses that *open* opens, one after the other.
     *
     * A response that is cut, or silent for too long while a run lives, is followed by
     * another one from the last id.
     */
    async *#stream(open, { signal, onState, cursor = '', live = false, endsWithResponse = false }) {
        let failures = 0
        let cut = false
        let missed = 0
        let expired = false
        for (;;) {
            signal?.throwIfAborted()
            const attempt = new AbortController()
            const abort = () => attempt.abort(signal.reason)
            signal?.addEventListener('abort', abort, { once: true })
            let timer
            const alive = () => {
                clearTimeout(timer)
                if (live) timer = setTimeout(() => attempt.abort(), this.silence)
            }
            let cause
            try {
                const response = await open(cursor, attempt.signal)
                if (!cut) onState({ state: 'connected', recovered: 0 })
                alive()
                let caughtUp = !cut
                let first = true
                missed = 0
                const settle = () => {
                    if (caughtUp) return
                    caughtUp = true
                    onState({ state: 'connected', recovered: missed })
                }
                // What was missed comes at once; what comes later is news.
                const settled = setTimeout(settle, 150)
                try {
                    for await (const sent of serverSentEvents(response.body)) {
                        alive()
                        failures = 0
                        expired = false
                        if (sent === null) {
                            settle()
                            continue
                        }
                        if (sent.event !== 'message') continue
                        const event = JSON.parse(sent.data)
                        if (sent.id) cursor = sent.id
                        if (!caughtUp) missed += 1
                        if (event.type === 'RUN_STARTED') live = true
                        if (isTerminal(event)) live = false
                        yield { event, offset: offsetOf(cursor), first }
                        first = false
                    }
                } finally {
                    clearTimeout(settled)
                }
                if (endsWithResponse && !live) return
            } catch (error) {
                signal?.throwIfAborted()
                if (error instanceof Refused && error.status === 401 && this.token && !expired) {
                    expired = true
                    continue
                }
                if (error instanceof Unreachable || !isTemporary(error)) throw error
                cause = error
            } finally {
                clearTimeout(timer)
                signal?.removeEventListener('abort', abort)
                attempt.abort()
            }
            cut = true
            failures += 1
            if (failures >= this.attempts) throw new Unreachable(failures, cause)
            onState({ state: 'reconnecting', attempt: failures })
            await wait(pause(cause, failures - 1, this.delay), signal)
        }
    }

    // Over the WebSocket of a Centrifuge client, which reconnects and recovers by itself.

    async *#watchChannel(thread, signal, onState, onSign) {
        const feed = this.#feed(thread)
        const queue = new Queue()
        const member = { push: (item) => queue.push(item), onState, onSign }
        feed.members.add(member)
        const abort = () => queue.fail(signal.reason)
        signal?.addEventListener('abort', abort, { once: true })
        try {
            signal?.throwIfAborted()
            onState({ state: 'connecting' })
            if (feed.members.size === 1) {
                feed.subscription.subscribe() // which asks for the state
            } else {
                const snapshot = await this.snapshot(thread, { signal })
                queue.first({ ...resetOf(snapshot) })
            }
            let offset
            for (;;) {
                const item = await queue.next()
                if (item.error) throw item.error
                if (!item.reset && (offset === undefined || item.offset <= offset)) continue
                offset = item.offset
                yield item
            }
        } finally {
            signal?.removeEventListener('abort', abort)
            feed.members.delete(member)
            if (feed.members.size === 0) this.#close(thread, feed)
        }
    }

    #feed(thread) {
        const known = this.#sockets.get(thread)
        if (known) return known
        const members = new Set()
        const tell = (item) => members.forEach((member) => member.push(item))
        const say = (state) => members.forEach((member) => member.onState(state))
        const subscription = this.centrifuge.newSubscription(this.channel(thread), {
            getState: async () => {
                try {
                    const snapshot = await this.snapshot(thread)
                    tell(resetOf(snapshot))
                    return { offset: snapshot.offset, epoch: snapshot.epoch }
                } catch (error) {
                    if (error instanceof Refused && !isTemporary(error)) tell({ error })
                    throw error
                }
            },
        })
        const feed = { members, subscription }
        let seen = false
        let missed = 0
        let counting = false
        let attempt = 0
        subscription.on('publication', ({ data, offset }) => {
            if (!offset) {
                members.forEach((member) => member.onSign(data))
                return
            }
            if (counting) missed += 1
            tell({ event: data, offset })
        })
        subscription.on('subscribing', ({ code }) => {
            if (!seen) return
            attempt += 1
            say({ state: 'reconnecting', attempt, code })
        })
        subscription.on('subscribed', (context) => {
            const recovering = seen && context.wasRecovering
            seen = true
            attempt = 0
            missed = 0
            counting = recovering && context.recovered
            // The SDK hands over what was missed right after this event.
            queueMicrotask(() => setTimeout(() => {
                counting = false
                say({ state: 'connected', recovered: missed })
            }, 0))
        })
        subscription.on('unsubscribed', ({ code, reason }) => {
            if (this.#sockets.get(thread) === feed) tell({ error: new Refused(code, reason) })
        })
        this.#sockets.set(thread, feed)
        return feed
    }

    #close(thread, feed) {
        this.#sockets.delete(thread)
        feed.subscription.unsubscribe()
        this.centrifuge.removeSubscription(feed.subscription)
    }
}

function resetOf({ events, offset }) {
    return { events, offset, reset: true }
}

function isTemporary(error) {
    return error instanceof Refused ? TEMPORARY.has(error.status) : true
}

function pause(error, attempt, delay) {
    const asked = error instanceof Refused ? error.wait : NaN
    return asked >= 0 ? Math.min(asked, 30000) : delay(attempt)
}

function offsetOf(cursor) {
    return Number(/(\d+)$/.exec(cursor)?.[1] ?? 0)
}

function wait(ms, signal) {
    return new Promise((resolve, reject) => {
        const done = () => {
            signal?.removeEventListener('abort', abort)
            resolve()
        }
        const timer = setTimeout(done, ms)
        const abort = () => {
            clearTimeout(timer)
            reject(signal.reason)
        }
        signal?.addEventListener('abort', abort, { once: true })
    })
}

class Queue {
    #items = []
    #waiting = null

    push(item) {
        if (item.reset) this.#items = [] // it has all that waits
        this.#items.push(item)
        this.#wake()
    }

    /** Put *item* before what waits: it is older. */
    first(item) {
        this.#items.unshift(item)
        this.#wake()
    }

    fail(error) {
        this.#items = [{ error }]
        this.#wake()
    }

    #wake() {
        this.#waiting?.()
        this.#waiting = null
    }

    async next() {
        while (!this.#items.length) {
            await new Promise((resolve) => {
                this.#waiting = resolve
            })
        }
        return this.#items.shift()
    }
}
