import { Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useMemo, useRef, useState } from "react";
import { lineageQuery, projectQuery } from "@/api/projects";
import type { Lineage } from "@/api/types";
import { useProjectId, useRights } from "@/app/project";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { UsagePanel } from "@/pages/UsagePanel";
import { Box } from "./Box";
import styles from "./Home.module.css";
import { Lines } from "./Lines";
import { layoutOf, STAGES, type Stage } from "./lineage";
import { NextStep } from "./NextStep";

const TITLES: Record<Stage, string> = {
  models: "Models and text",
  recordings: "Recordings",
  saes: "SAEs and adapters",
  measured: "Evaluations, features and graphs",
  patches: "Patches",
  exports: "Exports",
};

const USED = ["storage_bytes", "compute_seconds", "live_sessions"];

/** The project at a glance: what was made from what, what to do next, and how much of the limits is used. */
export function Home() {
  const project = useProjectId();
  const { data } = useQuery(projectQuery(project));
  const lineage = useQuery(lineageQuery(project));
  return (
    <Page title={data?.name ?? "Project"} lead={data?.description}>
      <Loaded query={lineage} what="the project" rows={8}>{(picture) => <Layout lineage={picture} project={project} />}</Loaded>
      <UsagePanel project={project} resources={USED} />
    </Page>
  );
}

function Layout({ lineage, project }: { lineage: Lineage; project: string }) {
  const { edit } = useRights(project);
  const picture = useMemo(() => layoutOf(lineage), [lineage]);
  const [lit, setLit] = useState<string | null>(null);
  const area = useRef<HTMLDivElement>(null);
  const has = (stage: Stage) => picture.columns[stage].length > 0;
  return (
    <>
      {lineage.nodes.length === 0 && <Text c="dimmed" size="sm">An empty project. Four steps lead to a patch of a live model:</Text>}
      <div className={styles.picture} ref={area} data-testid="lineage">
        <Lines area={area} edges={picture.edges} lit={lit} />
        {STAGES.map((stage, at) => (
          <section key={stage} className={styles.column} aria-label={TITLES[stage]}>
            <h2 className={styles.stage}>{TITLES[stage]}</h2>
            {picture.columns[stage].map((node) => (
              <Box
                key={node.id}
                node={node}
                project={project}
                edit={edit}
                lineage={lineage}
                onPoint={(on) => setLit(on ? node.id : null)}
              />
            ))}
            <NextStep stage={stage} project={project} edit={edit} empty={!has(stage)} possible={at === 0 || has(STAGES[at - 1]!)} needsModel={!lineage.nodes.some((node) => node.type === "model")} />
          </section>
        ))}
      </div>
    </>
  );
}
