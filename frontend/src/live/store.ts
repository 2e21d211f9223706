/** A value outside React that components subscribe to; changes of one frame are painted together. */

export class FrameStore<State> {
  private readonly listeners = new Set<() => void>();
  private frame: number | null = null;
  private painted: State;

  constructor(private current: State) {
    this.painted = current;
  }

  /** What components show. Bound, because React calls these without their object. */
  readonly getSnapshot = (): State => this.painted;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  /** The newest value, painted or not. */
  get value(): State {
    return this.current;
  }

  set(changes: Partial<State>): void {
    this.current = { ...this.current, ...changes };
    this.frame ??= requestAnimationFrame(() => this.paint());
  }

  private paint(): void {
    this.frame = null;
    this.painted = this.current;
    for (const listener of this.listeners) listener();
  }
}
