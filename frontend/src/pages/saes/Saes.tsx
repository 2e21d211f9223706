import { Button, Modal, Stack } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { saesQuery } from "@/api/saes";
import { useProjectId, useRights } from "@/app/project";
import { Empty } from "@/components/Empty";
import { LinkButton } from "@/components/LinkButton";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { SaeCard } from "./SaeCard";
import { TrainSae } from "./TrainSae";

export function Saes() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const { add, recording } = useSearch({ from: "/signed-in/projects/$project/saes" });
  const navigate = useNavigate();
  const saes = useQuery(saesQuery(project));
  const close = () => void navigate({ to: ".", search: {} });
  const button = edit && (
    <>
      <LinkButton to="/projects/$project/saes/import" params={{ project }} variant="default" data-testid="import-sae">Import</LinkButton>
      <Button onClick={() => void navigate({ to: ".", search: { add: true } })} data-testid="train-sae">Train an SAE</Button>
    </>
  );
  const compare = (saes.data ?? []).filter((sae) => sae.evaluation !== null).length > 1 && (
    <LinkButton to="/projects/$project/compare" params={{ project }} variant="default" data-testid="compare-saes">Compare</LinkButton>
  );

  return (
    <Page title="SAEs" lead="Sparse autoencoders: dictionaries of features for one block of a model." actions={<>{compare}{button}</>}>
      <Loaded query={saes} what="the SAEs">
        {(rows) =>
          rows.length === 0 ? (
            <Empty title="No SAEs yet" action={button}>Train one on a recording or import a colleague’s, then evaluate it and have its features analysed.</Empty>
          ) : (
            <Stack gap="sm">{rows.map((sae) => <SaeCard key={sae.id} sae={sae} />)}</Stack>
          )
        }
      </Loaded>
      <Modal opened={add === true && edit} onClose={close} title="Train an SAE" size="xl">
        <TrainSae project={project} recording={recording} onStarted={(id) => void navigate({ to: "/projects/$project/saes/$sae", params: { project, sae: id } })} />
      </Modal>
    </Page>
  );
}
