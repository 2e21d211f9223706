import { Button, Group, Modal, Stack, Tabs } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { corporaQuery, recordingsQuery } from "@/api/registry";
import { useProjectId, useRights } from "@/app/project";
import { Empty } from "@/components/Empty";
import { Loaded } from "@/components/Loaded";
import { Page } from "@/components/Page";
import { AddCorpus } from "./AddCorpus";
import { CorpusTable } from "./CorpusTable";
import { ImportRecording } from "./ImportRecording";
import { NewRecording } from "./NewRecording";
import { RecordingCard } from "./RecordingCard";

export function Recordings() {
  const project = useProjectId();
  const { edit } = useRights(project);
  const search = useSearch({ from: "/signed-in/projects/$project/recordings" });
  const navigate = useNavigate();
  const recordings = useQuery(recordingsQuery(project));
  const corpora = useQuery(corporaQuery(project));
  const show = (next: typeof search) => void navigate({ to: ".", search: next });
  const close = () => show({});
  const add = edit && <Button onClick={() => show({ add: true })} data-testid="new-recording">New recording</Button>;
  const addText = edit && <Button variant="default" onClick={() => show({ corpus: true })} data-testid="add-corpus">Add a corpus</Button>;
  const bring = edit && <Button variant="default" onClick={() => show({ import: true })} data-testid="import-recording">Import</Button>;

  return (
    <Page title="Recordings" lead="Activations of a model on text, kept on disk: what SAEs are trained and measured on." actions={<Group gap="xs">{addText}{bring}{add}</Group>}>
      <Tabs defaultValue="recordings" keepMounted={false}>
        <Tabs.List mb="sm">
          <Tabs.Tab value="recordings">Recordings ({recordings.data?.length ?? "…"})</Tabs.Tab>
          <Tabs.Tab value="corpora">Corpora ({corpora.data?.length ?? "…"})</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="recordings">
          <Loaded query={recordings} what="the recordings">
            {(rows) =>
              rows.length === 0 ? (
                <Empty title="No recordings yet" action={add}>Choose a model, blocks and text; a million tokens of a small model take a few minutes.</Empty>
              ) : (
                <Stack gap="sm">{rows.map((recording) => <RecordingCard key={recording.id} recording={recording} edit={edit} />)}</Stack>
              )
            }
          </Loaded>
        </Tabs.Panel>
        <Tabs.Panel value="corpora">
          <Loaded query={corpora} what="the corpora">
            {(rows) =>
              rows.length === 0 ? (
                <Empty title="No corpora yet" action={addText}>Upload text, take one the server offers, or name a dataset of the Hub.</Empty>
              ) : (
                <CorpusTable corpora={rows} edit={edit} />
              )
            }
          </Loaded>
        </Tabs.Panel>
      </Tabs>
      <Modal opened={search.add === true && edit} onClose={close} title="New recording" size="xl">
        <NewRecording project={project} model={search.model} onStarted={close} onAddCorpus={() => show({ corpus: true })} />
      </Modal>
      <Modal opened={search.import === true && edit} onClose={close} title="Import a recording" size="lg">
        <ImportRecording project={project} onStarted={close} />
      </Modal>
      <Modal opened={search.corpus === true && edit} onClose={close} title="Add a corpus" size="lg">
        <AddCorpus project={project} onAdded={close} />
      </Modal>
    </Page>
  );
}
