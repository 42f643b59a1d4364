// One thread in memory behind the paths that clients/agui asks, which is cut at will.

import { createServer } from 'node:http'

export class ThreadServer {
    /**
     * @param events What the agent sends, all of one run.
     * @param cutAfter Each response is cut after so many events.
     */
    constructor(events, { cutAfter = Infinity, agentPosition = Infinity } = {}) {
        this.events = events
        this.cutAfter = cutAfter
        this.log = []
        this.starts = new Map()
        this.requests = []
        this.answers = [] // statuses that are answered first
        this.trimmed = 0 // offsets up to it are gone
        this.agentPosition = agentPosition
        this.cancelled = []
    }

    async listen() {
        this.server = createServer((request, response) => this.answer(request, response))
        await new Promise((resolve) => this.server.listen(0, '127.0.0.1', resolve))
        this.url = `http://127.0.0.1:${this.server.address().port}`
        return this
    }

    close() {
        this.server.closeAllConnections()
        return new Promise((resolve) => this.server.close(resolve))
    }

    /** Let the agent go on to its end. */
    proceed(position = Infinity) {
        this.agentPosition = position
        this.write()
        this.waiting?.()
    }

    write() {
        while (this.log.length < Math.min(this.events.length, this.agentPosition)) {
            this.log.push(this.events[this.log.length])
        }
    }

    async answer(request, response) {
        let body = ''
        for await (const piece of request) body += piece
        const { pathname, searchParams } = new URL(request.url, this.url)
        this.requests.push({ search: searchParams.toString(), method: request.method, path: pathname, headers: request.headers, body })
        const status = this.answers.shift()
        if (status === 'cut') {
            request.socket.destroy()
            return
        }
        if (status) {
            response.writeHead(status, { 'Content-Type': 'application/json' })
            response.end(JSON.stringify({ title: `as asked: ${status}` }))
            return
        }
        if (pathname.endsWith('/cancel')) {
            this.cancelled.push(pathname.split('/').at(-2))
            response.end()
        } else if (pathname.endsWith('/snapshot')) {
            response.end(JSON.stringify({ events: this.log, offset: this.log.length, epoch: 'e', live: this.log.length < this.events.length, complete: true }))
        } else if (request.method === 'POST') {
            const { runId } = JSON.parse(body)
            this.starts.set(runId, (this.starts.get(runId) ?? 0) + 1)
            this.write()
            await this.stream(response, 0)
        } else {
            const after = request.headers['last-event-id'] ?? searchParams.get('after')
            const since = after === null || after === undefined ? 0 : Number(after)
            if (since < this.trimmed) {
                response.writeHead(410)
                response.end('{}')
                return
            }
            await this.stream(response, since)
        }
    }

    async stream(response, since) {
        response.writeHead(200, { 'Content-Type': 'text/event-stream' })
        response.write(': here\n\n')
        for (let sent = 0, offset = since; ; sent += 1, offset += 1) {
            if (sent >= this.cutAfter) {
                response.end('id: 999\ndata: {"type":') // what is not complete does not count
                return
            }
            while (offset >= this.log.length) {
                if (this.log.length >= this.events.length) {
                    response.end()
                    return
                }
                await new Promise((resolve) => {
                    this.waiting = resolve
                })
            }
            const text = JSON.stringify(this.log[offset])
            // In pieces, the last one cut off where the response is.
            response.write(`id: ${offset + 1}\nda`)
            response.write(`ta: ${text}\n\n`)
        }
    }
}

/** The events of one run with a text of *words*. */
export function run(words, runId = 'r') {
    return [
        { type: 'RUN_STARTED', threadId: 't', runId },
        { type: 'TEXT_MESSAGE_START', messageId: `${runId}-m`, role: 'assistant' },
        ...words.map((delta) => ({ type: 'TEXT_MESSAGE_CONTENT', messageId: `${runId}-m`, delta })),
        { type: 'TEXT_MESSAGE_END', messageId: `${runId}-m` },
        { type: 'RUN_FINISHED', threadId: 't', runId },
    ]
}

export function input(runId = 'r') {
    return { threadId: 't', runId, state: {}, messages: [], tools: [], context: [], forwardedProps: {} }
}

/** Let everything else go on until *condition* holds; the test has a time limit. */
export async function until(condition) {
    while (!await condition()) await new Promise((resolve) => setImmediate(resolve))
}
