import { Button, Group, Stack, Text, Textarea, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { projectQuery, updateProject } from "@/api/projects";
import type { Project } from "@/api/types";
import { ConflictNote } from "@/components/ConflictNote";

/** Name and description of the project, for its owners. */
export function ProjectPanel({ id }: { id: string }) {
  const project = useQuery(projectQuery(id));
  if (!project.data) return null;
  return <ProjectForm key={project.data.etag} project={project.data} />;
}

function ProjectForm({ project }: { project: Project }) {
  const [name, setName] = useState(project.name);
  const [description, setDescription] = useState(project.description ?? "");
  const queries = useQueryClient();
  const save = useMutation({
    mutationFn: () => updateProject(project, { name: name.trim(), description }),
    onSuccess: (changed) => {
      queries.setQueryData(projectQuery(project.id).queryKey, changed);
      void queries.invalidateQueries({ queryKey: ["projects"] });
    },
  });
  const dirty = name.trim() !== project.name || description !== (project.description ?? "");
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    save.mutate();
  };
  return (
    <form onSubmit={submit} className="panel">
      <Stack gap="xs">
        <Text size="sm" fw={600}>The project</Text>
        <TextInput label="Project name" required maxLength={120} value={name} onChange={(event) => setName(event.currentTarget.value)} error={save.error ? asApiError(save.error).about("name") : undefined} />
        <Textarea label="Description" autosize minRows={2} maxRows={8} maxLength={4000} value={description} onChange={(event) => setDescription(event.currentTarget.value)} />
        <ConflictNote error={save.error} doing="Saving the project" shownElsewhere={["name"]} onReload={() => void queries.invalidateQueries({ queryKey: ["projects", project.id] })} />
        <Group justify="flex-end">
          <Button type="submit" variant="default" loading={save.isPending} disabled={!dirty || !name.trim()} data-testid="save-project">Save</Button>
        </Group>
      </Stack>
    </form>
  );
}
