import { ActionIcon, Group, Select, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { featureAtQuery } from "@/api/features";
import type { EditKind } from "@/api/types";
import { isNoop, type EditCard } from "@/patches/plan";
import { number } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import styles from "./Lab.module.css";
import { PositionsControl } from "./PositionsControl";
import { StrengthControl } from "./StrengthControl";

interface EditCardViewProps {
  card: EditCard;
  /** The kinds that act through one feature, which a card can switch between. */
  kinds: readonly EditKind[];
  /** What it acts through, in words. */
  name: string;
  /** More about that, on a second line; empty for features, which say it themselves. */
  detail: string;
  selected: boolean;
  /** How strongly its feature fires on the prompt at most; null while unknown. */
  firing: number | null;
  onSelect: () => void;
  onChange: (card: EditCard, mark?: string) => void;
  onKind: (kind: EditKind) => void;
  onSettle: () => void;
  onSolo: () => void;
  onRemove: () => void;
  onMove: (by: number) => void;
}

/** One edit of the stack. */
export function EditCardView({ card, kinds, name, detail, selected, firing, onSelect, onChange, onKind, onSettle, onSolo, onRemove, onMove }: EditCardViewProps) {
  const { data: row } = useQuery({ ...featureAtQuery(card.feature.saeId, card.feature.index), enabled: card.feature.saeId !== "" && card.feature.index >= 0 });
  const switchable = kinds.includes(card.kind);
  return (
    <li
      className={styles.card}
      data-selected={selected}
      data-muted={!card.enabled}
      data-testid="edit-card"
      data-kind={card.kind.name}
      data-index={card.feature.index}
    >
      <Group gap={6} wrap="nowrap" align="flex-start">
        <button type="button" className={styles.what} onClick={onSelect} aria-pressed={selected} title="Select: shows it on the prompt and as evidence">
          <Text component="span" fw={600} size="sm">{switchable ? card.feature.index : name}</Text>{" "}
          <Text component="span" size="sm">{row?.label ?? ""}</Text>
          <Text component="span" size="xs" c="dimmed" ff="monospace" display="block">
            {row ? row.top_tokens.slice(0, 5).map(tokenLabel).join(" ") : detail || card.feature.site}
          </Text>
        </button>
        <ActionIcon size="sm" variant={card.enabled ? "default" : "filled"} onClick={() => onChange({ ...card, enabled: !card.enabled })} aria-pressed={!card.enabled} aria-label={`Mute ${name}`} title="Mute (space)" data-testid="mute">
          <span aria-hidden="true">M</span>
        </ActionIcon>
        <ActionIcon size="sm" variant="default" onClick={onSolo} aria-label={`Only ${name}`} title="Solo: mutes all others; again: none (s)" data-testid="solo">
          <span aria-hidden="true">S</span>
        </ActionIcon>
        <ActionIcon size="sm" variant="subtle" color="gray" onClick={onRemove} aria-label={`Remove ${name}`} data-testid="remove-edit">
          <span aria-hidden="true">✕</span>
        </ActionIcon>
      </Group>
      <Group gap={6} wrap="nowrap">
        {switchable ? (
          <Select size="xs" data={kinds.map(({ name: value, title: label }) => ({ value, label }))} value={card.kind.name} onChange={(value) => onKind(kinds.find((kind) => kind.name === value) ?? card.kind)} aria-label={`Operation on ${name}`} allowDeselect={false} w={148} comboboxProps={{ width: 200 }} data-testid="operation" />
        ) : (
          <Text size="xs" fw={600}>{card.kind.title}</Text>
        )}
        <Group gap={0} wrap="nowrap" ml="auto">
          <ActionIcon size={24} variant="subtle" color="gray" onClick={() => onMove(-1)} aria-label={`Move ${name} up`}>↑</ActionIcon>
          <ActionIcon size={24} variant="subtle" color="gray" onClick={() => onMove(1)} aria-label={`Move ${name} down`}>↓</ActionIcon>
        </Group>
      </Group>
      <Text size="xs" c="dimmed" title={card.kind.formula}>{card.kind.description}</Text>
      <StrengthControl card={card} onChange={(next) => onChange(next, `strength ${card.id}`)} onEnd={onSettle} />
      {card.kind.acts === "site" && <PositionsControl positions={card.positions} what={name} onChange={(positions) => onChange({ ...card, positions })} />}
      <Note card={card} firing={firing} />
    </li>
  );
}

/** Says when an edit cannot have an effect, and why. */
function Note({ card, firing }: { card: EditCard; firing: number | null }) {
  if (card.enabled && isNoop(card)) return <Text size="xs" c="dimmed">No-op at this strength.</Text>;
  if (card.kind.needs_firing && firing === 0) return <Text size="xs" c="dimmed">Silent on this prompt: this changes nothing here.</Text>;
  if (firing === null) return null;
  return <Text size="xs" c="dimmed">{firing > 0 ? `Fires on this prompt up to ${number(firing)}.` : "Silent on this prompt."}</Text>;
}
