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
  private flight: { rev: number } | null = null;
  /** When each revision was sent that may still be answered: also one whose answer was given up. */
  private readonly sentAt = new Map<number, number>();
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
    if (this.flight?.rev === rev) this.flight = null;
    const sentAt = this.sentAt.get(rev);
    const fresh = sentAt !== undefined && rev > this.shown;
    if (fresh) {
      this.shown = rev;
      for (const older of this.sentAt.keys()) if (older <= rev) this.sentAt.delete(older);
    }
    this.pump();
    return fresh ? this.clock() - sentAt : null;
  }

  /** The server dropped this revision in favour of a newer one, or refused it. */
  dropped(rev: number | null | undefined): void {
    if (this.flight && (rev == null || this.flight.rev === rev)) this.flight = null;
    this.pump();
  }

  /** The connection is new: whatever was in flight is gone, and the newest state is asked for again. */
  reconnected(): void {
    this.flight = null;
    this.sentAt.clear();
    if (this.last !== null) this.submit(this.last);
  }

  /** The connection is gone; nothing is sent until {@link reconnected}. */
  disconnected(): void {
    this.flight = null;
    this.waiting = null;
    this.sentAt.clear();
  }

  /** Forget everything but the revision count, which never falls. */
  clear(): void {
    this.flight = null;
    this.waiting = null;
    this.last = null;
    this.sentAt.clear();
    this.shown = this.newest;
  }

  /** True while what is shown is not the answer to the newest state: it is under way, or was refused. */
  get stale(): boolean {
    return this.shown < this.newest;
  }

  /** Whether a request is in flight. */
  get waits(): boolean {
    return this.flight !== null;
  }

  private pump(): void {
    if (this.flight || !this.waiting) return;
    const next = this.waiting;
    const now = this.clock();
    if (!this.transmit(next.rev, next.payload)) return;
    this.waiting = null;
    this.flight = { rev: next.rev };
    this.sentAt.set(next.rev, now);
  }
}
