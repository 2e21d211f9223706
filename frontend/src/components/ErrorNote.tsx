import { Alert, Button, Group, Text } from "@mantine/core";
import { asApiError } from "@/api/errors";

interface ErrorNoteProps {
  error: unknown;
  /** What was being done: "Loading the jobs". */
  doing?: string;
  retry?: () => void;
  /** Fields whose problems are shown beside them and not repeated here. */
  shownElsewhere?: readonly string[];
  /** Do not name the fields: the sentences speak for themselves. */
  plain?: boolean;
}

/** Says what failed, why, and what to do about it. */
export function ErrorNote({ error, doing, retry, shownElsewhere = [], plain = false }: ErrorNoteProps) {
  if (error == null) return null;
  const problems = asApiError(error).general(shownElsewhere);
  if (problems.length === 0) return null;
  return (
    <Alert
      variant="light"
      color="orange"
      role="alert"
      data-testid="error"
      title={doing ? `${doing} failed` : undefined}
      icon={<span aria-hidden="true">!</span>}
    >
      {problems.map((problem) => (
        <Text key={`${problem.code}-${problem.attr}`} size="sm">
          {!plain && problem.attr && problem.attr !== "non_field_errors" ? `${problem.attr}: ` : ""}
          {problem.detail} {problem.hint && <strong>{problem.hint}</strong>}{" "}
          <Text component="span" size="xs" c="dimmed" ff="monospace">{problem.code}</Text>
        </Text>
      ))}
      {retry && (
        <Group mt="xs">
          <Button variant="default" onClick={retry}>Try again</Button>
        </Group>
      )}
    </Alert>
  );
}
