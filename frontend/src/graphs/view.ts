/** What a person has set on a graph's page: pins, groups, sliders, the selected node. */

import { EVERYTHING, type Density } from "./filter";
import { GROUP_PREFIX, type NodeGroup } from "./fold";

export interface GraphView extends Density {
  pins: string[];
  groups: NodeGroup[];
  /** Id of the selected node as it is drawn. */
  node: string | null;
  /** Key of the selected edge as it is drawn; with one, no node is selected. */
  edge: string | null;
}

export const PLAIN: GraphView = { ...EVERYTHING, pins: [], groups: [], node: null, edge: null };

const MOST_NODES = 2000;
const MOST_GROUPS = 100;
const NAME_LENGTH = 80;

const texts = (value: unknown): string[] =>
  Array.isArray(value) ? [...new Set(value.filter((one): one is string => typeof one === "string" && one !== ""))].slice(0, MOST_NODES) : [];

function groupsOf(value: unknown): NodeGroup[] {
  if (!Array.isArray(value)) return [];
  const names = new Set<string>();
  return value.slice(0, MOST_GROUPS).flatMap((raw: unknown): NodeGroup[] => {
    if (typeof raw !== "object" || raw === null) return [];
    const { name, nodes, closed } = raw as Record<string, unknown>;
    if (typeof name !== "string" || name.trim() === "" || names.has(name)) return [];
    names.add(name);
    return [{ name: name.slice(0, NAME_LENGTH), nodes: texts(nodes), closed: closed === true }];
  });
}

const between = (value: unknown, low: number, high: number, otherwise: number): number =>
  typeof value === "number" && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;

/** A view from anything: an address, or what was stored. What is malformed in it is left out. */
export function viewOf(raw: unknown): GraphView {
  if (typeof raw !== "object" || raw === null) return PLAIN;
  const { pins, groups, least, most, node, edge } = raw as Record<string, unknown>;
  return {
    pins: texts(pins),
    groups: groupsOf(groups),
    least: between(least, 0, 1, PLAIN.least),
    most: Math.round(between(most, 0, 1000, PLAIN.most)),
    node: typeof node === "string" && node !== "" ? node : null,
    edge: typeof edge === "string" && edge !== "" ? edge : null,
  };
}

export type ViewSearch = { [Part in keyof GraphView]?: Exclude<GraphView[Part], null> };

/** What of a view is kept with a graph: not what is selected. */
export const keptOf = ({ pins, groups, least, most }: GraphView) => ({ pins, groups, least, most });

/** The view's part of an address: what differs from the stored view, so that addresses stay short. */
export function searchOf(view: GraphView, stored: GraphView = PLAIN): ViewSearch {
  const same = (part: keyof GraphView) => JSON.stringify(view[part]) === JSON.stringify(stored[part]);
  return {
    pins: same("pins") ? undefined : view.pins,
    groups: same("groups") ? undefined : view.groups,
    least: same("least") ? undefined : view.least,
    most: same("most") ? undefined : view.most,
    node: view.node ?? undefined,
    edge: view.edge ?? undefined,
  };
}

/** A stored view with what an address changes. */
export function viewFrom(search: ViewSearch, stored: GraphView): GraphView {
  return {
    pins: search.pins ?? stored.pins,
    groups: search.groups ?? stored.groups,
    least: search.least ?? stored.least,
    most: search.most ?? stored.most,
    node: search.node ?? null,
    edge: search.edge ?? null,
  };
}

/** The view with a node pinned, or not any more. */
export function togglePin(view: GraphView, ids: readonly string[]): GraphView {
  const all = ids.every((id) => view.pins.includes(id));
  const rest = view.pins.filter((id) => !ids.includes(id));
  return { ...view, pins: all ? rest : [...rest, ...ids] };
}

/** The view with a group; its nodes leave the groups they were in. */
export function withGroup(view: GraphView, group: NodeGroup): GraphView {
  const rest = view.groups
    .filter(({ name }) => name !== group.name)
    .map((other) => ({ ...other, nodes: other.nodes.filter((id) => !group.nodes.includes(id)) }))
    .filter(({ nodes }) => nodes.length > 0);
  return { ...view, groups: [...rest, group] };
}

export function withoutGroup(view: GraphView, name: string): GraphView {
  const node = view.node === GROUP_PREFIX + name ? null : view.node;
  return { ...view, node, groups: view.groups.filter((group) => group.name !== name) };
}

/** Open a group's box, or close it. */
export function toggleGroup(view: GraphView, name: string): GraphView {
  return { ...view, groups: view.groups.map((group) => (group.name === name ? { ...group, closed: !group.closed } : group)) };
}
