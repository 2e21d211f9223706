import { Button, Group, Modal, Table, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { graphsQuery, type GraphRow } from "@/api/graphs";
import { useProjectId, useRights } from "@/app/project";
import { Empty } from "@/components/Empty";
import { JobOf, useJobAbout } from "@/components/JobOf";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { ScrollX } from "@/components/ScrollX";
import { StateBadge } from "@/components/StateBadge";
import { TextLink } from "@/components/TextLink";
import { ago, fixed, integer } from "@/science/format";
import { ImportGraph } from "./ImportGraph";

/** A target as far as a list knows it: without its tokens' texts. */
function kindOf({ target, prompt }: GraphRow): string {
  const start = prompt.length > 48 ? `…${prompt.slice(-46)}` : prompt;
  const what = {
    feature: `feature ${target.index}`,
    token: "a next token",
    difference: "one next token rather than another",
    attention: `head ${target.layer}.${target.head}`,
    direction: `a direction behind block ${target.layer}`,
  }[target.kind];
  return `${what}, “${start}”`;
}

/** The project's graphs. */
export function Graphs() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const graphs = useQuery(graphsQuery(project));
  const search = useSearch({ from: "/signed-in/projects/$project/graphs" });
  const navigate = useNavigate();
  const show = (next: { import?: true }) => void navigate({ to: ".", search: next });
  const make = <LinkButton to="/projects/$project/graphs/new" params={{ project }} data-testid="new-graph">New graph</LinkButton>;
  return (
    <Page
      title="Graphs"
      lead="Where features and next tokens come from, every edge measured on the running model."
      actions={<Group gap="xs">{edit && <Button variant="default" onClick={() => show({ import: true })} data-testid="open-import">Bring a graph in</Button>}{make}</Group>}
    >
      <Loaded query={graphs} what="the graphs">
        {(rows) =>
          rows.length === 0 ? (
            <Empty title="No graphs yet" action={make}>Choose a prompt, and a next token or a feature that fires on it: the graph shows which features and heads it comes from.</Empty>
          ) : (
            <ScrollX panel>
              <Table>
                <Table.Thead>
                  <Table.Tr>
                    <Table.Th>Name</Table.Th>
                    <Table.Th>Explains</Table.Th>
                    <Table.Th title="hops on the longest path of verified edges">Depth</Table.Th>
                    <Table.Th title="edges verified on the running model, of all edges">Verified</Table.Th>
                    <Table.Th title="rank correlation of predicted and measured effects">Spearman</Table.Th>
                    <Table.Th>Made</Table.Th>
                  </Table.Tr>
                </Table.Thead>
                <Table.Tbody>{rows.map((row) => <Row key={row.id} row={row} project={project} />)}</Table.Tbody>
              </Table>
            </ScrollX>
          )
        }
      </Loaded>
      <Modal opened={search.import === true && edit} onClose={() => show({})} title="Bring a graph in" size="lg">
        <ImportGraph project={project} onDone={(made) => void navigate({ to: "/projects/$project/graphs/$graph", params: { project, graph: made.id } })} />
      </Modal>
    </Page>
  );
}

function Row({ row, project }: { row: GraphRow; project: string }) {
  const job = useJobAbout(project, row.id);
  const ready = row.state === "ready";
  return (
    <Table.Tr data-testid="graph-row" data-state={row.state}>
      <Table.Td miw={160}>
        <TextLink to="/projects/$project/graphs/$graph" params={{ project, graph: row.id }} fw={600}>{row.name}</TextLink>
        {row.comments > 0 && <Text size="xs" c="dimmed">{row.comments === 1 ? "1 comment" : `${row.comments} comments`}</Text>}
        {!ready && <><StateBadge state={row.state} /><JobOf job={job} /></>}
      </Table.Td>
      <Table.Td miw={200}><Text size="sm" style={{ overflowWrap: "anywhere" }}>{kindOf(row)}</Text><Text size="xs" c="dimmed">{row.model_name ?? "a model that is not here"}</Text></Table.Td>
      <Table.Td>{ready ? row.depth : "–"}</Table.Td>
      <Table.Td>{ready ? `${integer(row.verified)} of ${integer(row.edges)}` : "–"}</Table.Td>
      <Table.Td>{row.spearman === null ? "–" : fixed(row.spearman, 2)}</Table.Td>
      <Table.Td><Text size="sm">{row.created_by ?? "–"}</Text><Text size="xs" c="dimmed">{ago(row.created_at)}</Text></Table.Td>
    </Table.Tr>
  );
}
