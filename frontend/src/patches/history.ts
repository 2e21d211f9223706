/** Undo and redo over immutable states. A drag is one step, however many states it passes through. */

export interface History<State> {
  past: readonly State[];
  present: State;
  future: readonly State[];
  /** What the newest change was about; a further change with the same mark replaces it. */
  mark: string | null;
}

const DEEPEST = 200;

export function begin<State>(present: State): History<State> {
  return { past: [], present, future: [], mark: null };
}

/** Go to a new state. With a `mark`, changes in a row that carry the same one become a single step. */
export function change<State>(history: History<State>, next: State, mark: string | null = null): History<State> {
  if (Object.is(next, history.present)) return history;
  if (mark !== null && mark === history.mark) return { ...history, present: next, future: [] };
  return { past: [...history.past, history.present].slice(-DEEPEST), present: next, future: [], mark };
}

/** End a drag: the next change is a step of its own even if it carries the same mark. */
export function settle<State>(history: History<State>): History<State> {
  return history.mark === null ? history : { ...history, mark: null };
}

export function undo<State>(history: History<State>): History<State> {
  const previous = history.past.at(-1);
  if (previous === undefined) return history;
  return {
    past: history.past.slice(0, -1),
    present: previous,
    future: [history.present, ...history.future],
    mark: null,
  };
}

export function redo<State>(history: History<State>): History<State> {
  const [next, ...rest] = history.future;
  if (next === undefined) return history;
  return { past: [...history.past, history.present], present: next, future: rest, mark: null };
}
