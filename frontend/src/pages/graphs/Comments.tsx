import { Button, Group, Text, Textarea, Title } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { addGraphComment, deleteGraphComment, graphCommentsQuery } from "@/api/graphs";
import { useInvalidate } from "@/api/useInvalidate";
import { DeleteButton } from "@/components/DeleteButton";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { ago } from "@/science/format";

/** What people say about a graph. */
export function Comments({ graph, edit }: { graph: string; edit: boolean }) {
  const comments = useQuery(graphCommentsQuery(graph));
  const invalidate = useInvalidate();
  const [text, setText] = useState("");
  const add = useMutation({
    mutationFn: () => addGraphComment(graph, text.trim()),
    onSuccess: async () => {
      setText("");
      await invalidate("graphs");
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    if (text.trim()) add.mutate();
  };
  return (
    <section className="panel" data-testid="graph-comments">
      <Title order={3}>Comments</Title>
      <Loaded query={comments} what="the comments" rows={2}>
        {(rows) =>
          rows.map((comment) => (
            <div key={comment.id} style={{ margin: "0.4rem 0" }} data-testid="graph-comment">
              <Group justify="space-between" gap={4}>
                <Text size="xs" c="dimmed">{comment.author ?? "–"}, {ago(comment.created_at)}</Text>
                {edit && <DeleteButton what="the comment" remove={() => deleteGraphComment(graph, comment.id)} onDeleted={() => void invalidate("graphs")} />}
              </Group>
              <Text size="sm" style={{ whiteSpace: "pre-wrap", overflowWrap: "anywhere" }}>{comment.text}</Text>
            </div>
          ))
        }
      </Loaded>
      {edit ? (
        <form onSubmit={submit}>
          <Textarea size="xs" aria-label="Comment" placeholder="Say something about this graph" autosize minRows={1} maxLength={4000} value={text} onChange={(event) => setText(event.currentTarget.value)} data-testid="comment-text" />
          <Button type="submit" mt={4} variant="default" disabled={!text.trim()} loading={add.isPending} data-testid="comment-add">Comment</Button>
          <ErrorNote error={add.error} doing="Commenting" />
        </form>
      ) : comments.data?.length === 0 && <Text size="xs" c="dimmed">No comments yet.</Text>}
    </section>
  );
}
