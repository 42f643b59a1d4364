// What an application in TypeScript writes against clients/agui; it is only compiled.

import type { HttpAgent, RunAgentInput } from '@ag-ui/client'
import { Centrifuge } from 'centrifuge'

import { Refused, SteadwireAgent, Threads, Unreachable, isTerminal } from './agui/index.js'
import type { ConnectionState, ThreadsOptions } from './agui/index.js'
import { backoff, serverSentEvents, type RunInput, type Snapshot, type ThreadEvent } from './agui/threads.js'

const options: ThreadsOptions = {
    url: 'https://chat.example.org',
    token: async () => 'token',
    centrifuge: new Centrifuge('wss://chat.example.org/connection/websocket'),
    attempts: 3,
    delay: (attempt) => backoff(attempt),
}

export async function follow(threads: Threads, input: RunInput): Promise<string> {
    let text = ''
    const stop = new AbortController()
    const onState = (now: ConnectionState) => {
        const missed: number = now.state === 'connected' ? now.recovered : 0
        // @ts-expect-error: only a connection that is there has recovered something.
        return missed + now.recovered
    }
    for await (const event of threads.run('helper', input, { signal: stop.signal, onState })) {
        if (event.type === 'TEXT_MESSAGE_CONTENT') text += event.delta
        if (isTerminal(event)) break
    }
    for await (const item of threads.watch('trip', { onSign: (event: ThreadEvent) => event.type })) {
        if (item.reset) text = item.events.map((event) => event.type).join()
        else text += item.event.type
        // @ts-expect-error: a thread anew has events, and no event.
        if (item.reset) item.event.type
    }
    const snapshot: Snapshot = await threads.snapshot('trip')
    await threads.cancel('helper', input.runId, { thread: input.threadId })
    return text + snapshot.offset.toFixed()
}

export function made(): SteadwireAgent {
    const agent = new SteadwireAgent({ ...options, agent: 'helper', threadId: 'trip' })
    agent.subscribe({ onMessagesChanged: ({ messages }) => void messages.length })
    // @ts-expect-error: it has no name of an agent.
    new SteadwireAgent({ threadId: 'trip' })
    // @ts-expect-error: a token is asked for, each time.
    new Threads({ token: 'token' })
    // @ts-expect-error: the log of a thread is not the agent's to open.
    agent.connect({})
    return agent.clone()
}

/** What takes an HttpAgent takes ours, in all that the two have from AbstractAgent. */
export function anyAgent(use: (agent: Pick<HttpAgent, 'runAgent' | 'messages' | 'abortRun'>) => void): void {
    use(made())
}

export async function read(agent: SteadwireAgent, input: RunAgentInput, body: ReadableStream<Uint8Array>) {
    agent.run(input).subscribe({ next: (event) => event.type })
    for await (const event of serverSentEvents(body)) {
        const data: string | undefined = event?.data
        if (data) return data
    }
}

export function words(error: unknown): string {
    if (error instanceof Refused) return `refused: ${error.status.toFixed()}`
    return error instanceof Unreachable ? 'unreachable' : 'another'
}
