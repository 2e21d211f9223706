import { useEffect, useRef } from "react";
import { snapped, strengthOf, withStrength } from "@/patches/plan";
import type { Stack } from "./useStack";

/** Elements that use keys themselves. */
const BUSY = "input, textarea, select, button, a, summary, [contenteditable], [role=slider], [role=option], [role=switch], [role=radio], [role=dialog]";

/** Keys of the patch lab. They do nothing while the focus is on something that uses keys itself. */
export function useLabKeys(stack: Stack, focusSearch: () => void): void {
  const newest = useRef({ stack, focusSearch });
  useEffect(() => {
    newest.current = { stack, focusSearch };
  });
  useEffect(() => {
    const onKeyDown = (event: KeyboardEvent) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target instanceof Element && event.target.closest(BUSY)) return;
      if (press(event, newest.current.stack, newest.current.focusSearch)) event.preventDefault();
    };
    window.addEventListener("keydown", onKeyDown);
    return () => window.removeEventListener("keydown", onKeyDown);
  }, []);
}

function press(event: KeyboardEvent, stack: Stack, focusSearch: () => void): boolean {
  const card = stack.selected;
  switch (event.key) {
    case "/":
      focusSearch();
      return true;
    case "z":
      stack.undo();
      return true;
    case "Z":
      stack.redo();
      return true;
    case " ":
      if (card) stack.update({ ...card, enabled: !card.enabled });
      return card !== undefined;
    case "s":
      if (card) stack.solo(card.id);
      return card !== undefined;
    case "ArrowLeft":
    case "ArrowRight": {
      const slider = card?.kind.slider;
      if (!slider) return false;
      const by = (event.key === "ArrowRight" ? 1 : -1) * slider.step * (event.shiftKey ? 10 : 1);
      stack.update(withStrength(card, snapped(strengthOf(card) + by, slider.step)), `nudge ${card.id}`);
      return true;
    }
    default:
      return false;
  }
}
