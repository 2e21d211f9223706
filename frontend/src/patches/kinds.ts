/** Kinds of edits, as the server describes them: its own, and those that packages installed there add. */

import { useQuery } from "@tanstack/react-query";
import { editKindsQuery } from "@/api/patches";
import type { EditKind } from "@/api/types";

/** The kinds, in the order of menus; none while they are on their way. */
export function useEditKinds(): readonly EditKind[] {
  return useQuery(editKindsQuery).data ?? [];
}

/** The kind of a name. A stored plan can name one whose package is not installed any more. */
export function kindNamed(kinds: readonly EditKind[], name: string): EditKind {
  return (
    kinds.find((kind) => kind.name === name) ?? {
      name,
      title: name,
      description: "the package that brings this kind of edit is not installed on the server",
      package: "",
      formula: "",
      sentence: `${name} {target}`,
      refers_to: "feature",
      acts: "site",
      counts: null,
      neutral: null,
      slider: null,
      initial: 0,
      needs_firing: false,
      order: 0,
    }
  );
}
