import { ActionIcon, Button, Group, TextInput, Text } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { featureQuery, updateFeature } from "@/api/features";
import type { Feature } from "@/api/types";
import { ConflictNote } from "@/components/ConflictNote";

/** Changes a feature and everything that shows it. */
function useFeatureChange(feature: Feature) {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: (changes: { label?: string; starred?: boolean }) => updateFeature(feature, changes),
    onSuccess: (changed) => {
      queries.setQueryData(featureQuery(feature.id).queryKey, (old) => (old ? { ...old, feature: changed } : old));
      void queries.invalidateQueries({ queryKey: ["features"], refetchType: "none" });
    },
  });
}

export function StarButton({ feature, edit }: { feature: Feature; edit: boolean }) {
  const change = useFeatureChange(feature);
  const starred = change.isPending ? change.variables.starred === true : feature.starred;
  return (
    <ActionIcon
      variant="subtle"
      color="gray"
      disabled={!edit}
      onClick={() => change.mutate({ starred: !feature.starred })}
      aria-pressed={starred}
      aria-label={starred ? "Remove the star" : "Star this feature"}
      data-testid="star"
    >
      <span aria-hidden="true">{starred ? "★" : "☆"}</span>
    </ActionIcon>
  );
}

/** What people call the feature. */
export function FeatureLabel({ feature, edit }: { feature: Feature; edit: boolean }) {
  const change = useFeatureChange(feature);
  const queries = useQueryClient();
  const [text, setText] = useState(feature.label);
  if (!edit) return feature.label ? <Text fw={600}>{feature.label}</Text> : null;
  const reload = async () => {
    const newest = await queries.query({ ...featureQuery(feature.id), staleTime: 0 });
    setText(newest.feature.label);
    change.reset();
  };
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    change.mutate({ label: text.trim() });
  };
  return (
    <form onSubmit={submit}>
      <Group gap="xs" align="flex-end">
        <TextInput
          label="Label"
          placeholder="What does this feature stand for?"
          value={text}
          onChange={(event) => setText(event.currentTarget.value)}
          maxLength={200}
          flex={1}
          maw={560}
          data-testid="feature-label"
        />
        <Button type="submit" size="sm" variant="default" loading={change.isPending} disabled={text.trim() === feature.label} data-testid="save-label">Save label</Button>
        <Text size="xs" c="dimmed" role="status">{change.isSuccess && text.trim() === feature.label ? "saved" : ""}</Text>
      </Group>
      <ConflictNote error={change.error} doing="Saving the label" onReload={() => void reload()} />
    </form>
  );
}
