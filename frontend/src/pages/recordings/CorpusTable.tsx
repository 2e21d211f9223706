import { Group, Table } from "@mantine/core";
import { deleteCorpus } from "@/api/registry";
import type { Corpus } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { DeleteButton } from "@/components/DeleteButton";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { RenameButton } from "@/components/RenameButton";
import { ScrollX } from "@/components/ScrollX";
import { StateBadge } from "@/components/StateBadge";
import { ago, bytes, integer } from "@/science/format";

const KINDS: Record<Corpus["kind"], string> = { builtin: "on the server", upload: "uploaded", hub_dataset: "Hub dataset" };

export function CorpusTable({ corpora, edit }: { corpora: readonly Corpus[]; edit: boolean }) {
  return (
    <ScrollX panel>
      <Table>
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Name</Table.Th><Table.Th>Where from</Table.Th><Table.Th ta="right">Size</Table.Th>
            <Table.Th ta="right">Documents</Table.Th><Table.Th>Added</Table.Th><Table.Th>State</Table.Th><Table.Th><span className="visually-hidden">Actions</span></Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {corpora.map((corpus) => <CorpusRow key={corpus.id} corpus={corpus} edit={edit} />)}
        </Table.Tbody>
      </Table>
    </ScrollX>
  );
}

function CorpusRow({ corpus, edit }: { corpus: Corpus; edit: boolean }) {
  const invalidate = useInvalidate();
  const job = useJobAbout(corpus.project, corpus.id);
  return (
    <Table.Tr data-testid="corpus-row" data-state={corpus.state}>
      <Table.Td fw={600}>{corpus.name}</Table.Td>
      <Table.Td>{KINDS[corpus.kind]}: {corpus.reference}</Table.Td>
      <Table.Td ta="right">{bytes(corpus.bytes)}</Table.Td>
      <Table.Td ta="right">{integer(corpus.documents)}</Table.Td>
      <Table.Td>{ago(corpus.created_at)}</Table.Td>
      <Table.Td>{corpus.state === "ready" ? <StateBadge state="ready" /> : <JobOf job={job} />}</Table.Td>
      <Table.Td ta="right">
        {edit && (
          <Group gap="xs" justify="flex-end" wrap="nowrap">
            <RenameButton kind="corpora" row={corpus} />
            <DeleteButton what={corpus.name} remove={() => deleteCorpus(corpus.id)} onDeleted={() => void invalidate("corpora")} />
          </Group>
        )}
      </Table.Td>
    </Table.Tr>
  );
}
