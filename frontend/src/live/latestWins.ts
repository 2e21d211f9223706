/**
 * One request in flight, the newest waiting, everything between dropped.
 *
 * While a slider is dragged, far more states arise than a model can answer. Every submitted state gets a
 * rising revision; when an answer arrives the newest state is sent, and answers older than what is
 * already shown are refused.
 */
export class LatestWins<Payload> {
  private newest = 0;
  private shown = 0;
  private flight: { rev: number; payload: Payload; sentAt: number } | null = null;
  private waiting: { rev: number; payload: Payload } | null = null;
  private last: Payload | null = null;

  /**
   * @param transmit puts a revision on the wire; false says that it cannot now.
   * @param clock milliseconds, monotonic.
   */
  constructor(
    private readonly transmit: (rev: number, payload: Payload) => boolean,
    private readonly clock: () => number = () => performance.now(),
  ) {}

  /** Make this the state to be answered; returns its revision. */
  submit(payload: Payload): number {
    this.newest += 1;
    this.last = payload;
    this.waiting = { rev: this.newest, payload };
    this.pump();
    return this.newest;
  }

  /**
   * An answer has come. Returns the round-trip in milliseconds when it may be shown, null when it is
   * older than what is shown already or answers nothing that was asked.
   */
  answered(rev: number): number | null {
    const flight = this.flight;
    if (flight?.rev === rev) this.flight = null;
    const fresh = rev > this.shown && rev <= this.newest;
    if (fresh) this.shown = rev;
    this.pump();
    if (!fresh) return null;
    return flight?.rev === rev ? this.clock() - flight.sentAt : 0;
  }

  /** The server dropped this revision in favour of a newer one, or refused it. */
  dropped(rev: number | null | undefined): void {
    if (this.flight && (rev == null || this.flight.rev === rev)) this.flight = null;
    this.pump();
  }

  /** The connection is new: whatever was in flight is gone, and the newest state is asked for again. */
  reconnected(): void {
    this.flight = null;
    if (this.last !== null) this.submit(this.last);
  }

  /** The connection is gone; nothing is sent until {@link reconnected}. */
  disconnected(): void {
    this.flight = null;
    this.waiting = null;
  }

  /** Forget everything but the revision count, which never falls. */
  clear(): void {
    this.flight = null;
    this.waiting = null;
    this.last = null;
    this.shown = this.newest;
  }

  /** True while what is shown is not the answer to the newest state: it is under way, or was refused. */
  get stale(): boolean {
    return this.shown < this.newest;
  }

  /** Milliseconds the request in flight has been waiting, or null. */
  get waitingFor(): number | null {
    return this.flight ? this.clock() - this.flight.sentAt : null;
  }

  private pump(): void {
    if (this.flight || !this.waiting) return;
    const next = this.waiting;
    if (!this.transmit(next.rev, next.payload)) return;
    this.waiting = null;
    this.flight = { ...next, sentAt: this.clock() };
  }
}
