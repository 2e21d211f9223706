/** A WebSocket that reconnects by itself: exponential backoff with jitter, and a heartbeat. */

export type Connection = "connecting" | "open" | "lost" | "ended";

/** Codes with which the portal closes a socket for good. */
export const CLOSED_SIGNED_OUT = 4401;
export const CLOSED_FORBIDDEN = 4403;
export const CLOSED_NOT_FOUND = 4404;
const FINAL = new Set([CLOSED_SIGNED_OUT, CLOSED_FORBIDDEN, CLOSED_NOT_FOUND]);
/** The limit of live sessions is reached; it may work again when one is closed. */
export const CLOSED_TOO_MANY = 4429;

const FIRST_DELAY = 400;
const LONGEST_DELAY = 15_000;
const CROWDED_DELAY = 4000;
const HEARTBEAT = 20_000;
/** How long to wait for the answer to a ping; long, because reconnecting to a busy machine makes it busier. */
const PATIENCE = 30_000;

export interface SocketEvents<In> {
  onOpen: () => void;
  onMessage: (message: In) => void;
  onConnection: (connection: Connection, code?: number) => void;
}

export interface SocketOptions {
  /** For tests. */
  connect?: (url: string) => WebSocket;
  random?: () => number;
}

/** Milliseconds to wait before attempt `attempt` (counted from 0): full jitter over a doubling span. */
export function backoff(attempt: number, random: number): number {
  const span = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** attempt);
  return span / 2 + (span / 2) * random;
}

/** The address of a WebSocket path on the server the page came from. */
export function socketUrl(path: string): string {
  const scheme = window.location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${window.location.host}${path}`;
}

export class ReconnectingSocket<In, Out> {
  private socket: WebSocket | null = null;
  private attempt = 0;
  private retry: ReturnType<typeof setTimeout> | null = null;
  private heartbeat: ReturnType<typeof setTimeout> | null = null;
  private closed = false;

  constructor(
    private readonly url: string,
    private readonly events: SocketEvents<In>,
    private readonly ping: () => Out,
    private readonly options: SocketOptions = {},
  ) {
    window.addEventListener("online", this.retryNow);
    document.addEventListener("visibilitychange", this.retryNow);
    this.connect();
  }

  /** Send if the socket is open; returns whether it was. */
  send(message: Out): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  /** Close for good. */
  close(): void {
    this.closed = true;
    window.removeEventListener("online", this.retryNow);
    document.removeEventListener("visibilitychange", this.retryNow);
    if (this.retry) clearTimeout(this.retry);
    this.drop();
  }

  /** Try again now instead of after the backoff. */
  readonly retryNow = (): void => {
    if (this.closed || this.socket || document.visibilityState === "hidden") return;
    if (this.retry) clearTimeout(this.retry);
    this.retry = null;
    this.connect();
  };

  private connect(): void {
    this.events.onConnection(this.attempt === 0 ? "connecting" : "lost");
    const connect = this.options.connect ?? ((url: string) => new WebSocket(url));
    const socket = connect(this.url);
    this.socket = socket;
    socket.onopen = () => {
      this.attempt = 0;
      this.events.onConnection("open");
      this.events.onOpen();
      this.beat();
    };
    socket.onmessage = (event: MessageEvent<unknown>) => {
      this.beat();
      if (typeof event.data === "string") this.events.onMessage(JSON.parse(event.data) as In);
    };
    socket.onclose = (event: CloseEvent) => this.lost(event.code);
  }

  private lost(code: number): void {
    this.drop();
    if (this.closed) return;
    if (FINAL.has(code)) {
      this.closed = true;
      this.events.onConnection("ended", code);
      return;
    }
    this.events.onConnection("lost", code);
    const random = (this.options.random ?? Math.random)();
    const delay = code === CLOSED_TOO_MANY ? CROWDED_DELAY * (0.75 + random / 2) : backoff(this.attempt, random);
    this.attempt += 1;
    this.retry = setTimeout(this.hurryWhenHiddenToo, delay);
  }

  private readonly hurryWhenHiddenToo = (): void => {
    this.retry = null;
    if (!this.closed && !this.socket) this.connect();
  };

  /** Anything heard proves the connection lives; silence is answered with a ping, then with closing. */
  private beat(): void {
    if (this.heartbeat) clearTimeout(this.heartbeat);
    this.heartbeat = setTimeout(() => {
      this.send(this.ping());
      this.heartbeat = setTimeout(() => this.lost(0), PATIENCE);
    }, HEARTBEAT);
  }

  private drop(): void {
    if (this.heartbeat) clearTimeout(this.heartbeat);
    this.heartbeat = null;
    const socket = this.socket;
    this.socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState === WebSocket.OPEN || socket.readyState === WebSocket.CONNECTING) socket.close();
  }
}
