import { Button, FileInput, Group, SegmentedControl, Select, SimpleGrid, Stack, TextInput } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";
import { asApiError } from "@/api/errors";
import { addCorpus, builtinCorporaQuery, importCorpus } from "@/api/registry";
import type { Corpus } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { UploadProgress } from "@/files/UploadProgress";
import { useUploads } from "@/files/useUploads";
import { bytes } from "@/science/format";

type Kind = Corpus["kind"];

const KINDS: { value: Kind; label: string }[] = [
  { value: "upload", label: "Upload" },
  { value: "builtin", label: "On the server" },
  { value: "hub_dataset", label: "Hub dataset" },
];

export function AddCorpus({ project, onAdded }: { project: string; onAdded: (corpus: Corpus) => void }) {
  const [kind, setKind] = useState<Kind>("upload");
  const [name, setName] = useState("");
  const [file, setFile] = useState<File | null>(null);
  const [reference, setReference] = useState("");
  const [textField, setTextField] = useState("text");
  const uploads = useUploads();
  const builtin = useQuery(builtinCorporaQuery);
  const invalidate = useInvalidate();
  const suggested = kind === "upload" ? (file?.name.replace(/\.[^.]+$/, "") ?? "") : (reference.split("/").at(-1) ?? "");

  const add = useMutation({
    mutationFn: async () => {
      const title = name.trim() || suggested;
      if (kind !== "upload") return addCorpus({ project, name: title, kind, reference, text_field: textField });
      if (!file) throw new Error("Choose a file.");
      const started = await uploads.sendFor([{ path: file.name, file }], (ids) =>
        importCorpus({ project, name: title, uploads: ids, params: { text_field: textField } }),
      );
      return started.corpus;
    },
    onSuccess: async (corpus) => {
      await invalidate("corpora", "jobs", "lineage");
      onAdded(corpus);
    },
  });
  const about = (field: string) => (add.error ? asApiError(add.error).about(field) : undefined);
  const submit = (event: SyntheticEvent) => {
    event.preventDefault();
    add.mutate();
  };

  return (
    <form onSubmit={submit}>
      <Stack gap="sm">
        <ErrorNote error={add.error} doing="Adding the corpus" shownElsewhere={["reference", "name", "text_field"]} />
        <SegmentedControl aria-label="Where the text is" value={kind} onChange={(value) => setKind(value)} data={KINDS} />
        {kind === "upload" && (
          <FileInput
            label="File"
            description="Plain text, JSON, CSV, Parquet or Arrow, of any size. A job reads all of it before it can be used."
            placeholder="Choose a file"
            required
            accept=".txt,.md,.json,.jsonl,.ndjson,.jl,.csv,.tsv,.parquet,.arrow,.feather,text/plain"
            value={file}
            onChange={setFile}
            disabled={add.isPending}
          />
        )}
        {kind === "builtin" && (
          <Select
            label="Corpus"
            required
            data={(builtin.data ?? []).map((one) => ({ value: one.name, label: `${one.name} (${bytes(one.bytes)})` }))}
            value={reference || null}
            onChange={(value) => setReference(value ?? "")}
            placeholder={builtin.data?.length === 0 ? "This server offers none" : "Choose one"}
            error={about("reference")}
          />
        )}
        {kind === "hub_dataset" && (
          <TextInput label="Hub id" placeholder="Salesforce/wikitext" required value={reference} onChange={(event) => setReference(event.currentTarget.value)} error={about("reference")} />
        )}
        <SimpleGrid cols={{ base: 1, xs: 2 }} spacing="sm" className="fields">
          <TextInput label="Name" placeholder={suggested} value={name} onChange={(event) => setName(event.currentTarget.value)} error={about("name")} />
          <TextInput label="Text field" description="Holds the text of a row; “text” stands for its usual names, too." value={textField} onChange={(event) => setTextField(event.currentTarget.value)} error={about("text_field")} />
        </SimpleGrid>
        <UploadProgress uploads={uploads} />
        <Group justify="flex-end">
          <Button type="submit" loading={add.isPending}>Add</Button>
        </Group>
      </Stack>
    </form>
  );
}
