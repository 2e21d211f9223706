import { Button, Group, Text } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { makeUpstream } from "@/api/graphs";
import type { Model, Sae } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { TextLink } from "@/components/TextLink";
import { canTakePart, limitOf } from "@/graphs/saes";
import type { GraphTarget } from "@/graphs/types";

interface MissingSaesProps {
  project: string;
  model: Model;
  saes: readonly Sae[];
  target: GraphTarget;
  edit: boolean;
}

/** Says when no SAE lies below the target, so that only heads and MLPs can be named, and has them made with one click. */
export function MissingSaes({ project, model, saes, target, edit }: MissingSaesProps) {
  const invalidate = useInvalidate();
  const limit = limitOf(saes, target);
  const own = saes.find((sae) => target.kind === "feature" && sae.fingerprint === target.sae);
  const make = useMutation({
    mutationFn: () => makeUpstream(own ? { sae: own.id } : { model: model.id, layer: limit }),
    onSuccess: () => invalidate("jobs", "recordings", "saes", "lineage"),
  });
  const below = saes.filter((sae) => canTakePart(sae) && (limit === undefined || sae.layer < limit));
  if (below.length > 0) return null;
  return (
    <div className="panel" data-testid="missing-saes">
      <Group justify="space-between">
        <Text size="sm">{limit === undefined ? "This model has no SAE yet" : `No SAE of this model lies below block ${limit}`}: the graph names heads and MLPs, but no features.</Text>
        {edit && !make.data && <Button onClick={() => make.mutate()} loading={make.isPending} title="One recording of several blocks, and an SAE for each" data-testid="make-upstream">Record and train below it</Button>}
        {make.data && (
          <Text size="sm" role="status">
            Recording {make.data.layers.length === 1 ? "block" : "blocks"} {make.data.layers.join(", ")} and training an SAE on each.{" "}
            <TextLink to="/projects/$project/jobs" params={{ project }}>Watch the jobs</TextLink>
          </Text>
        )}
      </Group>
      <ErrorNote error={make.error} doing="Starting the recording" />
    </div>
  );
}
