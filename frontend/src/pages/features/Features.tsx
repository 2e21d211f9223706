import { Group, NumberInput, Stack, Switch, Text, TextInput } from "@mantine/core";
import { useDebouncedCallback, useHotkeys } from "@mantine/hooks";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useMemo, useRef, useState } from "react";
import { featuresQuery, type FeatureOrdering } from "@/api/features";
import { saeQuery } from "@/api/saes";
import type { FeatureSearch } from "@/app/search";
import { useProjectId } from "@/app/project";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { Page, type Crumb } from "@/components/Page";
import { integer } from "@/science/format";
import { FeatureTable } from "./FeatureTable";
import { FiringOnPrompt } from "./FiringOnPrompt";

const DEFAULT_ORDER: FeatureOrdering = "-max_activation";

/** The feature browser of one SAE. Its whole state is in the address. */
export function Features() {
  const project = useProjectId();
  const { sae: saeId } = useParams({ from: "/signed-in/projects/$project/saes/$sae/features" });
  const search = useSearch({ from: "/signed-in/projects/$project/saes/$sae/features" });
  const navigate = useNavigate();
  const { data: sae } = useQuery(saeQuery(saeId));
  const ordering = search.ordering ?? DEFAULT_ORDER;
  const query = useInfiniteQuery(
    featuresQuery({
      sae: saeId,
      ordering,
      search: search.search,
      starred: search.starred,
      labelled: search.labelled,
      dead: search.dead ? undefined : false,
      min_density: search.min === undefined ? undefined : search.min / 100,
      max_density: search.max === undefined ? undefined : search.max / 100,
    }),
  );
  const rows = useMemo(() => query.data?.pages.flatMap((page) => page.results) ?? [], [query.data]);
  const change = (part: Partial<FeatureSearch>) => void navigate({ to: ".", search: { ...search, ...part }, replace: true });

  const crumbs: Crumb[] = [
    { label: "SAEs", to: "/projects/$project/saes", params: { project } },
    { label: sae?.name ?? "SAE", to: "/projects/$project/saes/$sae", params: { project, sae: saeId } },
  ];
  return (
    <Page title={`Features of ${sae?.name ?? "…"}`} heading="Features" crumbs={crumbs} lead={query.data && `${integer(query.data.pages[0]?.count)} match`}>
      {sae && <FiringOnPrompt sae={sae} prompt={search.prompt} onPrompt={(prompt) => change({ prompt: prompt || undefined })} />}
      <Filters search={search} onChange={change} />
      {query.isError && <ErrorNote error={query.error} doing="Loading the features" retry={() => void query.refetch()} />}
      {query.isSuccess && rows.length === 0 ? (
        <Empty title="No feature matches">{sae && !sae.analysis ? "The features of this SAE have not been analysed yet." : "Search for something else, or drop a filter."}</Empty>
      ) : (
        <FeatureTable
          project={project}
          rows={rows}
          total={query.data?.pages[0]?.count ?? 0}
          ordering={ordering}
          onOrdering={(next) => change({ ordering: next === DEFAULT_ORDER ? undefined : next })}
          loading={query.isPending || query.isFetchingNextPage}
          onEnd={() => {
            if (query.hasNextPage && !query.isFetchingNextPage) void query.fetchNextPage();
          }}
        />
      )}
    </Page>
  );
}

function Filters({ search, onChange }: { search: FeatureSearch; onChange: (part: Partial<FeatureSearch>) => void }) {
  const box = useRef<HTMLInputElement>(null);
  const [text, setText] = useState(search.search ?? "");
  const later = useDebouncedCallback((value: string) => onChange({ search: value || undefined }), 250);
  const density = useDebouncedCallback((part: Partial<FeatureSearch>) => onChange(part), 400);
  useHotkeys([["/", () => box.current?.focus()]]);
  const bound = (value: string | number) => (typeof value === "number" ? value : undefined);
  return (
    <Stack gap="xs">
      <Group gap="sm" align="flex-end">
        <TextInput
          ref={box}
          label="Search"
          description="label, tokens it fires on, tokens it promotes"
          placeholder="press / to search"
          type="search"
          value={text}
          onChange={(event) => {
            setText(event.currentTarget.value);
            later(event.currentTarget.value);
          }}
          w={{ base: "100%", sm: 300 }}
          data-testid="feature-search"
        />
        <NumberInput label="Density from (%)" size="sm" w={120} min={0} max={100} decimalScale={4} defaultValue={search.min} onChange={(value) => density({ min: bound(value) })} hideControls />
        <NumberInput label="to (%)" size="sm" w={90} min={0} max={100} decimalScale={4} defaultValue={search.max} onChange={(value) => density({ max: bound(value) })} hideControls />
        <Group gap="md" pb={6}>
          <Switch label="starred" checked={search.starred === true} onChange={(event) => onChange({ starred: event.currentTarget.checked || undefined })} />
          <Switch label="labelled" checked={search.labelled === true} onChange={(event) => onChange({ labelled: event.currentTarget.checked || undefined })} />
          <Switch label="dead ones too" checked={search.dead === true} onChange={(event) => onChange({ dead: event.currentTarget.checked || undefined })} />
        </Group>
      </Group>
      <Text size="xs" c="dimmed">Density is the share of tokens a feature fires on; the bar is logarithmic, from one in a million to all.</Text>
    </Stack>
  );
}
