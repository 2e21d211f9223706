import { Button, Checkbox, Group, Modal, Select, Stack, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { createToken } from "@/api/account";
import { asApiError } from "@/api/errors";
import { projectsQuery } from "@/api/projects";
import type { Scope } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";

const SCOPES: { value: Scope; label: string; description: string }[] = [
  { value: "write", label: "write", description: "add, change and delete models, corpora, labels, patches" },
  { value: "jobs", label: "jobs", description: "start and cancel jobs, load models, run live sessions" },
  { value: "artifacts", label: "artifacts", description: "upload and download files" },
  { value: "admin", label: "admin", description: "make projects, manage members; for staff, act as staff" },
];
const LIVES = [
  { value: "30", label: "30 days" },
  { value: "90", label: "90 days" },
  { value: "365", label: "a year" },
  { value: "", label: "no end" },
];

export function NewToken({ onClose, onMade }: { onClose: () => void; onMade: (secret: string) => void }) {
  const projects = useQuery(projectsQuery);
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState<Scope[]>([]);
  const [project, setProject] = useState<string | null>(null);
  const [days, setDays] = useState("90");
  const make = useMutation({
    mutationFn: () => {
      const end = days === "" ? null : new Date(Date.now() + Number(days) * 86_400_000).toISOString();
      return createToken({ name: name.trim(), scopes, project, expires_at: end });
    },
    onSuccess: (made) => onMade(made.secret),
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    make.mutate();
  };
  return (
    <Modal opened onClose={onClose} title="New API token">
      <form onSubmit={submit} data-testid="token-form">
        <Stack>
          <ErrorNote error={make.error} doing="Making the token" shownElsewhere={["name"]} />
          <TextInput
            label="What it is for"
            required
            maxLength={80}
            data-autofocus
            value={name}
            onChange={(event) => setName(event.currentTarget.value)}
            error={make.error ? asApiError(make.error).about("name") : undefined}
          />
          <Checkbox.Group label="Besides reading it may" value={scopes} onChange={(values) => setScopes(values)}>
            <Stack gap={6} mt={4}>
              {SCOPES.map((scope) => <Checkbox key={scope.value} {...scope} />)}
            </Stack>
          </Checkbox.Group>
          <Select
            label="Where"
            clearable
            placeholder="in all your projects"
            data={(projects.data ?? []).map((one) => ({ value: one.id, label: one.name }))}
            value={project}
            onChange={setProject}
          />
          <Select label="How long" data={LIVES} value={days} onChange={(value) => setDays(value ?? "")} />
          <Group justify="flex-end">
            <Button variant="default" onClick={onClose}>Cancel</Button>
            <Button type="submit" loading={make.isPending}>Make token</Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
