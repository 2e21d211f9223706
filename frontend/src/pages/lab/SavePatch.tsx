import { Button, Group, Stack, Switch, Text, TextInput } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { createPatch, patchQuery, togglePatch, updatePatch } from "@/api/patches";
import type { EditPlan, Patch } from "@/api/types";
import { ConflictNote } from "@/components/ConflictNote";
import { ErrorNote } from "@/components/ErrorNote";
import { ordered } from "@/patches/plan";

interface SavePatchProps {
  model: string;
  /** The patch that is being edited, if any. */
  patch: Patch | undefined;
  plan: EditPlan;
  edit: boolean;
  onCreated: (patch: Patch) => void;
  /** Drop the stack and take the stored one again. */
  onRevert: (patch: Patch) => void;
  /** Whether the stack applies at all. */
  on: boolean;
  onSwitch: (on: boolean) => void;
}

const same = (a: EditPlan, b: EditPlan) => JSON.stringify(a) === JSON.stringify(b);

/** Name, switch and versions of the patch in the lab. */
export function SavePatch({ model, patch, plan, edit, onCreated, onRevert, on, onSwitch }: SavePatchProps) {
  const queries = useQueryClient();
  const stored = (changed: Patch) => {
    queries.setQueryData(patchQuery(changed.id).queryKey, changed);
    for (const key of ["patches", "lineage"]) void queries.invalidateQueries({ queryKey: [key], refetchType: "active" });
  };
  const save = useMutation({
    mutationFn: () => updatePatch(patch!, { plan }),
    onSuccess: stored,
  });
  const toggle = useMutation({ mutationFn: (enabled: boolean) => togglePatch(patch!.id, enabled), onSuccess: stored });
  const dirty = patch !== undefined && !same(ordered(patch.plan), ordered(plan));
  const flip = (next: boolean) => {
    onSwitch(next);
    if (patch && edit) toggle.mutate(next);
  };
  const revert = async () => {
    if (!patch) return;
    save.reset();
    onRevert(await queries.query({ ...patchQuery(patch.id), staleTime: 0 }));
  };

  return (
    <Stack gap="xs" className="panel">
      <Group justify="space-between" wrap="nowrap">
        <Text fw={600} size="sm" style={{ overflowWrap: "anywhere" }} data-testid="patch-name">{patch ? patch.name : "New patch"}</Text>
        <Switch
          label={on ? "on" : "off"}
          aria-label={`The patch is ${on ? "on" : "off"}`}
          checked={on}
          onChange={(event) => flip(event.currentTarget.checked)}
          title={patch ? "Also switches the saved patch, for inference over the API" : "Compare with the unpatched model"}
          data-testid="patch-toggle"
        />
      </Group>
      {patch && (
        <Group gap="xs" justify="space-between">
          <Text size="xs" c="dimmed" role="status" data-testid="patch-version">version {patch.version}{dirty ? ", changed since" : ", saved"}</Text>
          {dirty && (
            <Group gap={4}>
              <Button variant="subtle" color="gray" onClick={() => void revert()}>Revert</Button>
              {edit && <Button onClick={() => save.mutate()} loading={save.isPending} data-testid="save-patch">Save version {patch.version + 1}</Button>}
            </Group>
          )}
        </Group>
      )}
      <ConflictNote error={save.error} doing="Saving the patch" onReload={() => void revert()} />
      <ErrorNote error={toggle.error} doing="Switching the saved patch" />
      {edit && (plan.edits.length > 0 || patch) && <SaveAs model={model} plan={plan} another={patch !== undefined} onCreated={onCreated} />}
    </Stack>
  );
}

function SaveAs({ model, plan, another, onCreated }: { model: string; plan: EditPlan; another: boolean; onCreated: (patch: Patch) => void }) {
  const [name, setName] = useState("");
  const queries = useQueryClient();
  const create = useMutation({
    mutationFn: () => createPatch({ model, name: name.trim(), description: "", plan, enabled: true }),
    onSuccess: (made) => {
      queries.setQueryData(patchQuery(made.id).queryKey, made);
      for (const key of ["patches", "lineage"]) void queries.invalidateQueries({ queryKey: [key], refetchType: "active" });
      setName("");
      onCreated(made);
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    create.mutate();
  };
  const form = (
    <form onSubmit={submit}>
      <Group gap="xs" align="flex-start" wrap="nowrap">
        <TextInput
          size="xs"
          flex={1}
          required
          maxLength={120}
          placeholder="Name"
          aria-label="Name of the new patch"
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          error={create.error ? asApiError(create.error).about("name") : undefined}
          data-testid="patch-name-input"
        />
        <Button type="submit" loading={create.isPending} data-testid={another ? "save-as-patch" : "save-patch"}>{another ? "Save as new" : "Save patch"}</Button>
      </Group>
      <ErrorNote error={create.error} doing="Saving the patch" shownElsewhere={["name"]} />
    </form>
  );
  return another ? <details><summary style={{ fontSize: "0.75rem" }}>Save as another patch</summary>{form}</details> : form;
}
