/** Targets, nodes, edges and components in words. */

import { integer, number } from "@/science/format";
import { tokenLabel } from "@/science/tokens";
import type { DrawnNode } from "./fold";
import type { Component, Contributor, Edge, Graph, GraphNode, GraphTarget, Part } from "./types";

type Texts = Pick<Graph, "tokens" | "saes">;

/** A position as it is counted from the start. */
export function positionOf(graph: Pick<Graph, "tokens">, position: number): number {
  return position < 0 ? graph.tokens.length + position : position;
}

interface ReadToken {
  token?: number | null;
  text: string;
}

/** Whether a prompt is read as the same tokens; a graph of a file may be of another tokenizer. */
export const sameTokens = (some: readonly ReadToken[], others: readonly ReadToken[]): boolean =>
  some.length === others.length && some.every(({ token, text }, at) => token === others[at]!.token || text === others[at]!.text);

/** "“ Paris” (4)". */
export function tokenAt(graph: Pick<Graph, "tokens">, position: number | null): string {
  if (position === null) return "no token";
  const at = positionOf(graph, position);
  const token = graph.tokens[at];
  return token ? `“${tokenLabel(token.text)}” (${at})` : `position ${at}`;
}

/** The words the target node carries, without its place. */
export function targetWords(graph: Texts & Pick<Graph, "nodes">, target: GraphTarget): string {
  const text = graph.nodes.find((node) => node.kind === "target")?.text ?? "";
  const place = tokenAt(graph, target.position);
  switch (target.kind) {
    case "feature": {
      const sae = graph.saes.find((one) => one.fingerprint === target.sae);
      return `feature ${integer(target.index)}${sae ? ` of ${sae.name || sae.site}` : ""} at ${place}`;
    }
    case "token":
      return `the logit of ${text ? `“${tokenLabel(text)}”` : `token ${target.token}`} after ${place}`;
    case "difference":
      return `the logit ${text ? `difference ${text}` : `of token ${target.token} less that of token ${target.against}`} after ${place}`;
    case "attention":
      return `attention of head ${target.layer}.${target.head} from ${place} to ${tokenAt(graph, target.key)}`;
    case "direction":
      return `a direction behind block ${target.layer} at ${place}`;
  }
}

/** A node in a line: "feature 12 at resid_post.3, “ Paris” (4)". */
export function nodeWords(graph: Texts, node: GraphNode): string {
  const place = node.position === null ? "" : `, ${tokenAt(graph, node.position)}`;
  switch (node.kind) {
    case "target":
      return `the target${node.text && `, ${tokenLabel(node.text)}`}${place}`;
    case "feature":
      return `feature ${integer(node.index)} at ${node.site}${place}`;
    case "error":
      return `what the SAE at ${node.site} leaves over${place}`;
    case "bias":
      return `the constant of the SAE at ${node.site}${place}`;
    case "embedding":
      return `the embedding${place}`;
    case "mlp":
      return `the MLP of block ${node.layer}${place}`;
    case "head":
      return `head ${node.layer}.${node.index ?? ""}${place}`;
    case "block":
      return `block ${node.layer}${place}`;
  }
}

/** The few characters inside a node's box. */
export function boxText(node: DrawnNode): string {
  if (node.group !== null) return node.group;
  const [top] = node.members as [GraphNode];
  switch (top.kind) {
    case "target":
      return top.text ? tokenLabel(top.text) : "target";
    case "feature":
      return String(top.index);
    case "error":
      return "error";
    case "bias":
      return "bias";
    case "embedding":
      return "embed";
    case "mlp":
      return `MLP ${top.layer}`;
    case "head":
      return `${top.layer}.${top.index ?? ""}`;
    case "block":
      return `block ${top.layer}`;
  }
}

/** A drawn node as a table names it: what it is, and where. */
export function shortWords(graph: Texts, node: DrawnNode, name: string): [what: string, where: string] {
  const [top] = node.members as [GraphNode];
  if (node.group !== null) return [node.group, counted(node.members.length, "node")];
  const site = top.kind === "feature" || top.kind === "error" || top.kind === "bias" ? top.site : "";
  return [name ? `${boxText(node)} ${name}` : boxText(node), [site, top.position === null ? "" : tokenAt(graph, top.position)].filter(Boolean).join(", ")];
}

/** A drawn node in a line, with the layers it spans. */
export function drawnWords(graph: Texts, node: DrawnNode): string {
  if (node.group !== null) return `group “${node.group}”, ${node.members.length} nodes`;
  const words = nodeWords(graph, node.members[0]!);
  return node.from < node.layer ? `${words}; the same direction from block ${node.from} on` : words;
}

const KINDS: Record<Component["kind"] | Contributor["kind"] | Part["kind"], string> = {
  embedding: "embedding",
  head: "head",
  attention: "attention",
  mlp: "MLP",
  block: "block",
  bias: "biases",
  feature: "feature",
  error: "error",
  direct: "direct",
  other: "smaller ones",
};

type Module = Pick<Part, "layer" | "head"> & { kind: keyof typeof KINDS; index?: number | null; position?: number | null };

/** "head 3.5", "MLP 7", "direct". */
export function moduleWords({ kind, layer, head, index }: Module): string {
  if (kind === "head") return `head ${layer}.${head}`;
  if (kind === "feature") return `feature ${index}${layer === null ? "" : ` behind block ${layer}`}`;
  return layer === null ? KINDS[kind] : `${KINDS[kind]} ${layer}`;
}

export type EdgeState = "verified" | "refuted" | "open";

/** How an edge is drawn: solid, struck, or dashed. */
export function edgeState(edge: Edge): EdgeState {
  if (edge.verified === null) return "open";
  return edge.verified ? "verified" : "refuted";
}

/** An edge's verdict in words, with what was measured. */
export function verdictWords(edge: Edge): string {
  if (edge.verdict === null) return edge.carry ? "carried, not measured" : "not measured";
  return `${edge.verdict}: ${number(edge.measured)} measured, ${number(edge.attribution)} predicted`;
}

/** "1 SAE", "2 SAEs". */
export const counted = (count: number, one: string, many = `${one}s`): string => `${integer(count)} ${count === 1 ? one : many}`;
