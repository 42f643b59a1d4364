import type { Centrifuge } from "centrifuge";

/** An event of AG-UI, as the agent sent it. */
export interface ThreadEvent {
  type: string;
  [field: string]: any;
}

/** What starts a run: a RunAgentInput of AG-UI. */
export interface RunInput {
  threadId: string;
  runId: string;
  messages: readonly any[];
  state?: any;
  tools?: readonly any[];
  context?: readonly any[];
  forwardedProps?: any;
  [field: string]: any;
}

/** The thread so far, compacted. */
export interface Snapshot {
  events: ThreadEvent[];
  offset: number;
  epoch: string;
  /** The id of the run that lives; "" for none. */
  live: string;
  /** False where the beginning is not stored any more. */
  complete: boolean;
}

/** The state of the connection; `recovered` events were missed, and have come. */
export type ConnectionState =
  | { state: "connecting" }
  | { state: "connected"; recovered: number }
  | { state: "reconnecting"; attempt: number };

/** A thread anew, or its next event. */
export type ThreadItem =
  | { reset: true; events: ThreadEvent[]; offset: number }
  | { reset?: undefined; event: ThreadEvent; offset: number };

export interface ThreadsOptions {
  /** Steadwire's address; the page's own by default. */
  url?: string;
  /** Returns a token or a ticket; asked for each request. */
  token?: () => string | Promise<string>;
  /** Then events come over its WebSocket, else over server-sent events. */
  centrifuge?: Centrifuge;
  /** Of the threads' channels; "thread" by default. */
  namespace?: string;
  fetch?: typeof globalThis.fetch;
  /** Failures one after another before it gives up; 30 by default. */
  attempts?: number;
  /** The delay in ms before attempt 0, 1, …; up to 5 s at random by default. */
  delay?: (attempt: number) => number;
  /** ms without a sign of life of a living run after which a stream is cut; 15,000. */
  silence?: number;
}

export interface WatchOptions {
  signal?: AbortSignal;
  onState?: (state: ConnectionState) => void;
}

export interface ViewOptions extends WatchOptions {
  /** Called with events that are in no log, as of somebody who types (WebSocket only). */
  onSign?: (event: ThreadEvent) => void;
}

export class Threads {
  constructor(options?: ThreadsOptions);
  /** The name of a thread's channel. */
  channel(thread: string): string;
  snapshot(thread: string, options?: { signal?: AbortSignal }): Promise<Snapshot>;
  /** Start a run; repeating it with the same run id starts nothing twice. */
  start(agent: string, input: RunInput, options?: { signal?: AbortSignal }): Promise<void>;
  /** Stop a run: it ends as cancelled, for everybody. */
  cancel(
    agent: string,
    run: string,
    options?: { thread?: string; signal?: AbortSignal },
  ): Promise<void>;
  /** Start a run, and yield its events until it has ended. */
  run(agent: string, input: RunInput, options?: WatchOptions): AsyncGenerator<ThreadEvent, void>;
  /** Yield the run that lives, well-formed from its first event, until it has ended. */
  join(thread: string, options?: WatchOptions): AsyncGenerator<ThreadEvent, void>;
  /** Yield what a thread has, and what comes, until `signal` says to stop. */
  watch(thread: string, options?: ViewOptions): AsyncGenerator<ThreadItem, void>;
}

/** An answer of the server that another attempt would not change. */
export class Refused extends Error {
  status: number;
}

/** The server could not be reached in as many attempts as there are. */
export class Unreachable extends Error {}

export function isTerminal(event: ThreadEvent): boolean;
export function backoff(attempt: number, random?: () => number): number;
export function serverSentEvents(
  body: ReadableStream<Uint8Array>,
): AsyncGenerator<{ id: string; event: string; data: string } | null, void>;
