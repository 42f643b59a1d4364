import { AbstractAgent, type AgentConfig, type BaseEvent, type RunAgentInput } from "@ag-ui/client";
import type { Observable } from "rxjs";
import type { ConnectionState, Threads, ThreadsOptions } from "./threads.js";

export { Refused, Threads, Unreachable, isTerminal } from "./threads.js";
export type * from "./threads.js";

export interface SteadwireAgentConfig extends AgentConfig, ThreadsOptions {
  /** The agent's name in Steadwire's settings. */
  agent: string;
  onState?: (state: ConnectionState) => void;
}

export class SteadwireAgent extends AbstractAgent {
  agent: string;
  threads: Threads;
  onState?: (state: ConnectionState) => void;
  constructor(config: SteadwireAgentConfig);
  run(input: RunAgentInput): Observable<BaseEvent>;
  protected connect(input: RunAgentInput): Observable<BaseEvent>;
  abortRun(): void;
  clone(): SteadwireAgent;
}
