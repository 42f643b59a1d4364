// An agent of npm `@ag-ui/client` behind Steadwire: its runs survive the connection.
//
// Unlike HttpAgent it goes on where it was cut, finds a run again that it did not start
// (`connectAgent`), and stops it on the server (`abortRun`).

import { AbstractAgent } from '@ag-ui/client'
import { Observable } from 'rxjs'

import { Threads } from './threads.js'

export { Refused, Threads, Unreachable, isTerminal } from './threads.js'

export class SteadwireAgent extends AbstractAgent {
    /**
     * @param config As of AbstractAgent and of Threads, and
     * @param config.agent The agent's name in Steadwire's settings.
     * @param config.onState Called with the state of the connection.
     */
    constructor({ agent, url, token, centrifuge, namespace, fetch, attempts, delay, silence, onState, ...config }) {
        super(config)
        this.agent = agent
        this.onState = onState
        this.liveRun = null
        this.threadOptions = dropUndefined({
            url, token, centrifuge, namespace, fetch, attempts, delay, silence,
        })
        this.threads = new Threads(this.threadOptions)
    }

    /** Run the agent. Unsubscribing ends nothing on the server. */
    run(input) {
        return this._observe(input.runId, (options) => this.threads.run(this.agent, input, options))
    }

    /** Watch the run that lives in the thread, from what it has so far to its end. */
    connect(input) {
        return this._observe(null, (options) => this.threads.join(input.threadId, options))
    }

    /** Stop the run that this agent has started or watches: it ends as cancelled, for everybody. */
    abortRun() {
        const run = this.liveRun
        if (run) this.threads.cancel(this.agent, run, { thread: this.threadId }).catch(() => {}) // it may have ended
    }

    clone() {
        const cloned = super.clone()
        cloned.agent = this.agent
        cloned.onState = this.onState
        cloned.liveRun = null
        cloned.threadOptions = this.threadOptions
        cloned.threads = new Threads(this.threadOptions)
        return cloned
    }

    _observe(runId, open) {
        return new Observable((subscriber) => {
            const stop = new AbortController()
            this.liveRun = runId
            const go = async () => {
                for await (const event of open({ signal: stop.signal, onState: this.onState })) {
                    if (event.type === 'RUN_STARTED') this.liveRun = event.runId
                    subscriber.next(event)
                }
                subscriber.complete()
            }
            go().catch((error) => {
                if (!stop.signal.aborted) subscriber.error(error)
            }).finally(() => {
                this.liveRun = null
            })
            return () => stop.abort()
        })
    }
}

function dropUndefined(options) {
    return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
}
