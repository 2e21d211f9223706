import { useCallback, useMemo, useState } from "react";
import { begin, change, redo, settle, undo, type History } from "@/patches/history";
import { moved, soloed, type EditCard } from "@/patches/plan";

export interface Stack {
  cards: readonly EditCard[];
  selected: EditCard | undefined;
  canUndo: boolean;
  canRedo: boolean;
  select: (id: string) => void;
  add: (card: EditCard) => void;
  remove: (id: string) => void;
  move: (id: string, by: number) => void;
  /** Mute all others; once more: none. */
  solo: (id: string) => void;
  /** Replace a card; changes in a row with the same mark are one step to undo. */
  update: (card: EditCard, mark?: string) => void;
  /** The drag is over. */
  settle: () => void;
  undo: () => void;
  redo: () => void;
  /** Start over with a stored stack. */
  reset: (cards: readonly EditCard[]) => void;
}

/** The stack of edits, with its history and the selected card. */
export function useStack(): Stack {
  const [history, setHistory] = useState<History<readonly EditCard[]>>(() => begin([]));
  const [chosen, setChosen] = useState<string | null>(null);
  const cards = history.present;

  const edit = useCallback((next: (cards: readonly EditCard[]) => readonly EditCard[], mark?: string) => {
    setHistory((now) => change(now, next(now.present), mark ?? null));
  }, []);
  const actions = useMemo(
    () => ({
      select: setChosen,
      add: (card: EditCard) => {
        edit((now) => [...now, card]);
        setChosen(card.id);
      },
      remove: (id: string) => edit((now) => now.filter((card) => card.id !== id)),
      move: (id: string, by: number) => edit((now) => moved(now, id, by)),
      solo: (id: string) => edit((now) => soloed(now, id)),
      update: (card: EditCard, mark?: string) => edit((now) => now.map((one) => (one.id === card.id ? card : one)), mark),
      settle: () => setHistory(settle),
      undo: () => setHistory(undo),
      redo: () => setHistory(redo),
      reset: (stored: readonly EditCard[]) => {
        setHistory(begin(stored));
        setChosen(stored[0]?.id ?? null);
      },
    }),
    [edit],
  );
  return {
    cards,
    selected: cards.find((card) => card.id === chosen) ?? cards.at(-1),
    canUndo: history.past.length > 0,
    canRedo: history.future.length > 0,
    ...actions,
  };
}
