import { Group, Select, Text, Textarea } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useEffect, useState } from "react";
import { modelsQuery } from "@/api/registry";
import { saesQuery } from "@/api/saes";
import type { Model, Sae } from "@/api/types";
import { useProjectId, useRights } from "@/app/project";
import { target as completeTarget, type NewGraphSearch } from "@/app/search";
import { Empty } from "@/components/Empty";
import { ErrorNote } from "@/components/ErrorNote";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { LiveBanner } from "@/live/LiveBanner";
import { useLiveSession } from "@/live/hooks";
import { failureError } from "@/live/messages";
import { LiveGraphView } from "./LiveGraphView";
import { TargetChooser } from "./TargetChooser";

const FIRST_PROMPT = "The capital of France is";
/** Next tokens that can be chosen. */
const NEXT_TOKENS = 40;

/** A graph made live: choose a prompt and a target, and see the picture fill in. */
export function NewGraph() {
  const project = useProjectId();
  const search = useSearch({ from: "/signed-in/projects/$project/graphs/new" });
  const navigate = useNavigate();
  const models = useQuery(modelsQuery(project));
  const saes = useQuery(saesQuery(project));
  const change = (part: Partial<NewGraphSearch>, replace = false) => void navigate({ to: ".", search: { ...search, ...part }, replace });
  return (
    <Loaded query={models} what="the models" rows={8}>
      {(rows) => {
        const usable = rows.filter((model) => model.state === "ready");
        const model = usable.find((one) => one.id === search.model) ?? usable.find((one) => saes.data?.some((sae) => sae.model === one.id)) ?? usable[0];
        if (!model) {
          return (
            <Page title="New graph">
              <Empty title="No model yet" action={<LinkButton to="/projects/$project/models" params={{ project }} search={{ add: true }}>Add a model</LinkButton>}>A graph shows where a feature or a next token of a model comes from.</Empty>
            </Page>
          );
        }
        return (
          <Page
            title="New graph"
            crumbs={[{ label: "Graphs", to: "/projects/$project/graphs", params: { project } }]}
            lead={model.name}
            actions={usable.length > 1 && <Select size="xs" aria-label="Model" data={usable.map((one) => ({ value: one.id, label: one.name }))} value={model.id} onChange={(value) => void navigate({ to: ".", search: { model: value ?? undefined, prompt: search.prompt } })} />}
          >
            <ErrorNote error={saes.error} doing="Loading the SAEs" retry={() => void saes.refetch()} />
            {saes.data && <Live key={model.id} project={project} model={model} saes={saes.data.filter((sae) => sae.model === model.id && sae.state === "ready")} search={search} onSearch={change} />}
          </Page>
        );
      }}
    </Loaded>
  );
}

interface LiveProps {
  project: string;
  model: Model;
  saes: readonly Sae[];
  search: NewGraphSearch;
  onSearch: (part: Partial<NewGraphSearch>, replace?: boolean) => void;
}

function Live({ project, model, saes, search, onSearch }: LiveProps) {
  const { edit } = useRights(project);
  const [session, live] = useLiveSession(model.id, NEXT_TOKENS);
  const prompt = search.prompt ?? FIRST_PROMPT;
  const target = completeTarget(search.target);
  useEffect(() => session?.open(prompt), [session, prompt]);
  return (
    <>
      <PromptBox key={prompt} prompt={prompt} onPrompt={(text) => onSearch({ prompt: text, target: undefined, node: undefined, edge: undefined, pins: undefined, groups: undefined })} />
      <LiveBanner model={model.id} state={live} session={session} edit={edit} />
      {live.failure && (!live.graph?.graph || live.graph.ended === "failed") && <ErrorNote error={failureError(live.failure)} doing="Asking the model" />}
      {target ? (
        <LiveGraphView project={project} model={model} saes={saes} session={session} live={live} target={target} search={search} onSearch={onSearch} edit={edit} />
      ) : live.opened ? (
        <TargetChooser saes={saes} session={session} live={live} onTarget={(chosen) => onSearch({ model: model.id, prompt, target: chosen })} />
      ) : (
        <Text size="sm" c="dimmed" className="panel">{live.opening ? "Reading the prompt…" : "The prompt’s tokens show here as soon as the model answers."}</Text>
      )}
    </>
  );
}

/** The prompt; another one starts over. */
function PromptBox({ prompt, onPrompt }: { prompt: string; onPrompt: (prompt: string) => void }) {
  const [text, setText] = useState(prompt);
  const later = useDebouncedCallback((typed: string) => {
    if (typed !== prompt && typed !== "") onPrompt(typed);
  }, 900);
  return (
    <Group grow>
      <Textarea
        label="Prompt"
        autosize
        minRows={1}
        maxRows={6}
        value={text}
        onChange={(event) => {
          setText(event.currentTarget.value);
          later(event.currentTarget.value);
        }}
        data-testid="prompt"
      />
    </Group>
  );
}
