import { ActionIcon, Menu, type MenuItemProps } from "@mantine/core";
import { createLink } from "@tanstack/react-router";
import { forwardRef, type AnchorHTMLAttributes } from "react";
import type { TokenShift } from "@/charts/ProbabilityBars";
import type { GraphTarget } from "@/graphs/types";
import { tokenLabel } from "@/science/tokens";

/** Other tokens that are offered to compare with. */
const OTHERS = 4;

const LinkItem = createLink(
  forwardRef<HTMLAnchorElement, MenuItemProps & Omit<AnchorHTMLAttributes<HTMLAnchorElement>, keyof MenuItemProps>>(function Item(props, ref) {
    return <Menu.Item ref={ref} component="a" {...props} />;
  }),
);

interface WhyTokenProps {
  project: string;
  model: string;
  prompt: string;
  row: TokenShift;
  rows: readonly TokenShift[];
}

/** Leads to a graph of where a next token comes from, on its own or rather than another. Of the unpatched model. */
export function WhyToken({ project, model, prompt, row, rows }: WhyTokenProps) {
  const text = tokenLabel(row.text);
  const others = rows.filter((other) => other.token !== row.token).slice(0, OTHERS);
  const to = (target: Partial<GraphTarget>) => ({ to: "/projects/$project/graphs/new", params: { project }, search: { model, prompt, target } }) as const;
  return (
    <Menu position="bottom-end" withinPortal>
      <Menu.Target>
        <ActionIcon size={24} variant="subtle" color="gray" aria-label={`Why ${text}?`} title="Where this token comes from" data-testid="why-token"><span aria-hidden="true">?</span></ActionIcon>
      </Menu.Target>
      <Menu.Dropdown>
        <LinkItem {...to({ kind: "token", token: row.token, position: -1 })} data-testid="why-this">Why “{text}”?</LinkItem>
        {others.map((other) => (
          <LinkItem key={other.token} {...to({ kind: "difference", token: row.token, against: other.token, position: -1 })} data-testid="why-rather">Why “{text}” rather than “{tokenLabel(other.text)}”?</LinkItem>
        ))}
      </Menu.Dropdown>
    </Menu>
  );
}
