import { MantineProvider } from "@mantine/core";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { fireEvent, render, screen } from "@testing-library/react";
import { expect, it, vi } from "vitest";
import { EditCardView } from "@/pages/lab/EditCardView";
import { newCard } from "@/patches/plan";
import { KINDS } from "./kindsRig";

it("an edit's operation is switched to another one, and choosing the present one changes nothing", async () => {
  const onKind = vi.fn();
  const nothing = () => undefined;
  const card = newCard({ saeId: "", sae: "f", index: 4, site: "resid_post.2", p999: null }, KINDS.scale);
  render(
    <QueryClientProvider client={new QueryClient()}>
      <MantineProvider env="test">
        <EditCardView card={card} kinds={[KINDS.ablate, KINDS.scale]} name="feature 4" detail="" selected firing={null} onSelect={nothing} onChange={nothing} onKind={onKind} onSettle={nothing} onSolo={nothing} onRemove={nothing} onMove={nothing} />
      </MantineProvider>
    </QueryClientProvider>,
  );
  const choose = async (name: string) => {
    fireEvent.click(screen.getByTestId("operation"));
    fireEvent.click(await screen.findByRole("option", { name, hidden: true }));
  };
  await choose("scale");
  expect(onKind).not.toHaveBeenCalled();
  await choose("ablate");
  expect(onKind).toHaveBeenCalledExactlyOnceWith(KINDS.ablate);
});
