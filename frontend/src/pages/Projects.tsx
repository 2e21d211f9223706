import { Badge, Button, Card, Group, Modal, SimpleGrid, Stack, Text, Textarea, TextInput } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { createProject, projectsQuery } from "@/api/projects";
import type { Project } from "@/api/types";
import frame from "@/app/Shell.module.css";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { ImportProject } from "@/pages/ImportProject";
import { ago } from "@/science/format";

export function Projects() {
  const projects = useQuery(projectsQuery);
  const [adding, { open, close }] = useDisclosure(false);
  const [importing, { open: openImport, close: closeImport }] = useDisclosure(false);
  const add = (
    <Group gap="xs">
      <Button variant="default" onClick={openImport} data-testid="import-project">Import a project</Button>
      <Button onClick={open} data-testid="new-project">New project</Button>
    </Group>
  );
  return (
    <div className={frame.content}>
      <Page title="Projects" lead="Models, recordings, SAEs and patches belong to a project; its members see them, nobody else does." actions={add}>
        <Loaded query={projects} what="your projects">
          {(rows) =>
            rows.length === 0 ? (
              <Empty title="No projects yet" action={add}>Make one, or ask somebody to add you to theirs.</Empty>
            ) : (
              <SimpleGrid cols={{ base: 1, sm: 2, lg: 3 }} spacing="sm">
                {rows.map((project) => <ProjectCard key={project.id} project={project} />)}
              </SimpleGrid>
            )
          }
        </Loaded>
        <NewProject opened={adding} onClose={close} />
        <ImportProject opened={importing} onClose={closeImport} />
      </Page>
    </div>
  );
}

function ProjectCard({ project }: { project: Project }) {
  return (
    <Card
      component={Link}
      to={`/projects/${project.id}`}
      withBorder
      padding="md"
      data-testid="project-card"
      data-project={project.id}
    >
      <Group justify="space-between" wrap="nowrap" align="flex-start">
        <Text fw={600} style={{ overflowWrap: "anywhere" }}>{project.name}</Text>
        <Badge variant="outline" color="gray" radius="sm" tt="none" flex="none">{project.role ?? "staff"}</Badge>
      </Group>
      {project.description && <Text size="sm" c="dimmed" lineClamp={3}>{project.description}</Text>}
      <Text size="xs" c="dimmed" mt="xs">made {ago(project.created_at)}</Text>
    </Card>
  );
}

function NewProject({ opened, onClose }: { opened: boolean; onClose: () => void }) {
  const [name, setName] = useState("");
  const [description, setDescription] = useState("");
  const queries = useQueryClient();
  const navigate = useNavigate();
  const make = useMutation({
    mutationFn: () => createProject({ name: name.trim(), description }),
    onSuccess: async (project) => {
      await queries.invalidateQueries({ queryKey: projectsQuery.queryKey });
      await navigate({ to: "/projects/$project", params: { project: project.id } });
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    make.mutate();
  };
  return (
    <Modal opened={opened} onClose={onClose} title="New project">
      <form onSubmit={submit}>
        <Stack>
          <ErrorNote error={make.error} doing="Making the project" shownElsewhere={["name"]} />
          <TextInput
            label="Name"
            required
            maxLength={120}
            data-autofocus
            value={name}
            onChange={(event) => setName(event.currentTarget.value)}
            error={make.error ? asApiError(make.error).about("name") : undefined}
          />
          <Textarea label="What it is about" autosize minRows={2} value={description} onChange={(event) => setDescription(event.currentTarget.value)} />
          <Group justify="flex-end">
            <Button variant="default" onClick={onClose}>Cancel</Button>
            <Button type="submit" loading={make.isPending}>Make project</Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
