import { Button, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { cloneJob, jobKindsQuery, jobQuery } from "@/api/jobs";
import type { Job } from "@/api/types";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { ParamsForm } from "@/forms/ParamsForm";
import { useParams } from "@/forms/useParams";

/** Repeat a job with other parameters. */
export function CloneJob({ job }: { job: Job }) {
  const [open, setOpen] = useState(false);
  const query = useQuery({ ...jobQuery(job.id), enabled: open });
  return (
    <>
      <Button variant="default" onClick={() => setOpen(true)} data-testid="clone-job">Repeat with changes</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={`Repeat: ${job.title}`} size="xl">
        {open && <Loaded query={query} what="the job">{(detail) => <CloneForm job={job} params={detail.params} />}</Loaded>}
      </Modal>
    </>
  );
}

function CloneForm({ job, params: before }: { job: Job; params: Record<string, unknown> }) {
  const kinds = useQuery(jobKindsQuery);
  const named = kinds.data?.find((kind) => kind.name === job.kind)?.named ?? false;
  const [name, setName] = useState("");
  const params = useParams(job.kind, [], before);
  const queries = useQueryClient();
  const navigate = useNavigate();
  const clone = useMutation({
    mutationFn: async () => {
      const values = params.collect();
      if (!values || (named && !name.trim())) return null;
      const emptied = params.specs.filter((spec) => spec.optional && before[spec.name] != null && params.entries[spec.name] === "");
      const cleared = Object.fromEntries(emptied.map((spec) => [spec.name, null]));
      return cloneJob(job.id, name.trim(), { ...values, ...cleared });
    },
    onSuccess: async (made) => {
      if (!made) return;
      await queries.invalidateQueries();
      await navigate({ to: "/jobs/$job", params: { job: made.id } });
    },
  });
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    clone.mutate();
  };
  const missing = named && params.tried && !name.trim() ? "The new result needs a name." : undefined;
  return (
    <form onSubmit={submit}>
      <Stack gap="md">
        <Text size="sm">The job and its result stay as they are; this submits another one.</Text>
        <ErrorNote error={clone.error ?? params.error} doing="Submitting" shownElsewhere={["name"]} />
        {named && (
          <TextInput label="Name of the new result" required value={name} onChange={(event) => setName(event.currentTarget.value)} error={missing ?? (clone.error ? asApiError(clone.error).about("name") : undefined)} data-testid="clone-name" />
        )}
        <ParamsForm specs={params.specs} entries={params.entries} onChange={params.setEntries} tried={params.tried} />
        <Group justify="flex-end">
          <Button type="submit" loading={clone.isPending} data-testid="clone-submit">Submit</Button>
        </Group>
      </Stack>
    </form>
  );
}
