import { Group, Text } from "@mantine/core";
import type { Model, Sae } from "@/api/types";
import { LinkButton } from "@/components/LinkButton";
import { canTakePart, limitOf } from "@/graphs/saes";
import type { GraphTarget } from "@/graphs/types";

interface MissingSaesProps {
  project: string;
  model: Model;
  saes: readonly Sae[];
  target: GraphTarget;
  edit: boolean;
}

/** Says when no SAE lies below the target, so that nothing but heads and MLPs can be named. */
export function MissingSaes({ project, model, saes, target, edit }: MissingSaesProps) {
  const limit = limitOf(saes, target);
  const below = saes.filter((sae) => canTakePart(sae) && (limit === undefined || sae.layer < limit));
  if (below.length > 0) return null;
  return (
    <div className="panel" data-testid="missing-saes">
      <Group justify="space-between">
        <Text size="sm">{limit === undefined ? "This model has no SAE yet" : `No SAE of this model lies below block ${limit}`}: the graph names heads and MLPs, but no features.</Text>
        {edit && <LinkButton to="/projects/$project/recordings" params={{ project }} search={{ add: true, model: model.id }}>Record blocks below it</LinkButton>}
      </Group>
    </div>
  );
}
