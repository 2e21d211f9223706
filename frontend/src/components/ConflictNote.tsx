import { Button } from "@mantine/core";
import { asApiError } from "@/api/errors";
import { ErrorNote } from "./ErrorNote";

interface ConflictNoteProps {
  error: unknown;
  doing: string;
  /** Take what is stored now instead of the own change. */
  onReload: () => void;
  shownElsewhere?: readonly string[];
}

/** What went wrong with a change; when somebody else was faster, a way to theirs. */
export function ConflictNote({ error, doing, onReload, shownElsewhere }: ConflictNoteProps) {
  const conflict = error != null && asApiError(error).code === "version_conflict";
  return (
    <>
      <ErrorNote error={error} doing={doing} shownElsewhere={shownElsewhere} />
      {conflict && <Button variant="default" onClick={onReload} data-testid="load-newer">Load the newer version instead of mine</Button>}
    </>
  );
}
