import { Anchor, Badge, Button, Group, Stack, Text, Textarea } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { certificatePageUrl, certificateUrl, certifyExport, deleteExport, exportFileUrl, exportZipUrl, overrideExport } from "@/api/exports";
import { jobsQuery } from "@/api/jobs";
import type { PatchExport, Verdict } from "@/api/types";
import { useRights } from "@/app/project";
import { DeleteButton } from "@/components/DeleteButton";
import { ErrorNote } from "@/components/ErrorNote";
import { JobOf } from "@/components/JobOf";
import { canFetch, gateSign, gradeSign, lines } from "@/patches/exports";
import { ago, bytes } from "@/science/format";
import { CertificateTable } from "./CertificateTable";

interface ExportCardProps {
  made: PatchExport;
  titles: readonly Verdict[];
  onChanged: () => void;
}

// A link by itself is as high as a finger or a shaky pointer needs it.
const TARGET = { display: "inline-block", paddingBlock: 3 };

/** One export: its state, its certificate, its files. */
export function ExportCard({ made, titles, onChanged }: ExportCardProps) {
  const { edit, manage } = useRights(made.project);
  const jobs = useQuery(jobsQuery({ project: made.project }));
  const running = jobs.data?.find((job) => job.id === (made.state === "ready" ? made.certificate?.job : made.job));
  const [sign, word, color] = gateSign(made);
  const [grade, gradeWord, gradeColor] = gradeSign(made.grade);
  const title = titles.find((verdict) => verdict.target === made.target)?.title ?? made.target;
  const certified = made.certificate?.state === "ready";
  return (
    <section className="panel" aria-label={`${title}, version ${made.patch_version}`} data-testid="export" data-gate={made.gate} data-state={made.state}>
      <Group justify="space-between" align="flex-start">
        <div>
          <Text fw={600} size="sm">{title}</Text>
          <Text size="xs" c="dimmed">version {made.patch_version} · {made.created_by ?? "–"} · {ago(made.created_at)}</Text>
        </div>
        <Group gap={6}>
          <Badge color={gradeColor} variant="light" radius="sm" tt="none">{grade} {gradeWord}</Badge>
          <Badge color={color} variant="light" radius="sm" tt="none">{sign} {word}</Badge>
        </Group>
      </Group>
      <JobOf job={running} />
      {made.certificate && certified && <CertificateTable certificate={made.certificate} />}
      {made.override_reason && (
        <Text size="xs" mt={4}>Let through by {made.overridden_by ?? "somebody"}, {ago(made.overridden_at ?? made.created_at)}: “{made.override_reason}”</Text>
      )}
      <Group gap="md" mt="xs">
        {canFetch(made) && <Anchor href={exportZipUrl(made.id)} download size="sm" style={TARGET} data-testid="download">Download all</Anchor>}
        {certified && <Anchor href={certificatePageUrl(made.id)} target="_blank" rel="noreferrer" size="sm" style={TARGET}>Certificate</Anchor>}
        {certified && <Anchor href={certificateUrl(made.id)} download size="sm" style={TARGET}>as JSON</Anchor>}
      </Group>
      {canFetch(made) && (
        <details>
          <summary>Files</summary>
          <ul style={{ margin: "0.4rem 0", paddingLeft: "1.2rem" }}>
            {(made.files as { path: string; bytes: number; sha256: string }[]).map((file) => (
              <li key={file.path}>
                <Anchor href={exportFileUrl(made.id, file.path)} download size="sm">{file.path}</Anchor>{" "}
                <Text component="span" size="xs" c="dimmed" title={`sha256 ${file.sha256}`}>{bytes(file.bytes)}</Text>
              </li>
            ))}
          </ul>
        </details>
      )}
      {manage && made.state === "ready" && made.gate === "blocked" && <Override made={made} onDone={onChanged} />}
      {edit && made.state === "ready" && <Again made={made} onDone={onChanged} />}
      {edit && <DeleteButton what={`this export of ${made.patch_name}`} remove={() => deleteExport(made.id)} onDeleted={onChanged} />}
    </section>
  );
}

/** For owners: let a blocked export out, with a reason that stays with it. */
function Override({ made, onDone }: { made: PatchExport; onDone: () => void }) {
  const [reason, setReason] = useState("");
  const override = useMutation({ mutationFn: () => overrideExport(made.id, reason.trim()), onSuccess: onDone });
  return (
    <details>
      <summary>Let it through all the same</summary>
      <Stack gap="xs" mt="xs">
        <Textarea label="Reason" description="It is kept with the export and in the audit log." minRows={2} autosize value={reason} onChange={(event) => setReason(event.currentTarget.value)} />
        <ErrorNote error={override.error} doing="Letting it through" />
        <Group><Button color="orange" disabled={reason.trim().length < 10} loading={override.isPending} onClick={() => override.mutate()}>Let it through</Button></Group>
      </Stack>
    </details>
  );
}

/** Measure once more, on prompts of one's own beside the held-out text. */
function Again({ made, onDone }: { made: PatchExport; onDone: () => void }) {
  const [prompts, setPrompts] = useState("");
  const certify = useMutation({ mutationFn: () => certifyExport(made.id, lines(prompts)), onSuccess: onDone });
  return (
    <details>
      <summary>Measure again</summary>
      <Stack gap="xs" mt="xs">
        <Textarea label="Prompts where the patch is meant to act" description="One per line; they are measured beside the held-out text." minRows={2} autosize value={prompts} onChange={(event) => setPrompts(event.currentTarget.value)} />
        <ErrorNote error={certify.error} doing="Starting the measurement" />
        <Group><Button variant="default" loading={certify.isPending} onClick={() => certify.mutate()}>Measure</Button></Group>
      </Stack>
    </details>
  );
}
