import { QueryClient } from "@tanstack/react-query";
import { expect, it, vi } from "vitest";
import type { Job } from "@/api/types";
import { JobsFeed } from "@/live/jobsFeed";
import { FakeSocket } from "./socketRig";

const step = (id: string, state: Job["state"]) => ({ id, project: "p", pipeline: "line", kind: "train", state, seq: 1, done: 0 }) as Job;

it("shows every step of a pipeline as it is, whichever job's page is open", async () => {
  const queries = new QueryClient();
  const feed = new JobsFeed(queries, { connect: FakeSocket.connect, random: () => 0.5 });
  const key = ["jobs", "pipeline", "line"];
  const steps = [step("1", "running"), step("2", "waiting")];
  queries.setQueryData(key, { id: "line", jobs: steps });
  feed.follow("p");
  FakeSocket.last.open();
  FakeSocket.last.say({ type: "snapshot", project: "p", jobs: steps });
  const invalidated = vi.spyOn(queries, "invalidateQueries");
  FakeSocket.last.say({ type: "job", job: { ...steps[0]!, seq: 2, state: "succeeded" }, transient: false });
  FakeSocket.last.say({ type: "job", job: { ...steps[1]!, seq: 2, state: "running" }, transient: false });
  expect(queries.getQueryData(key)).toMatchObject({ id: "line", jobs: [{ state: "succeeded" }, { state: "running" }] });
  expect(invalidated.mock.calls.map(([filters]) => filters?.queryKey)).toContainEqual(key);
  await queries.query({ queryKey: key, queryFn: () => ({ id: "line", jobs: steps }), staleTime: 0 });
  expect(queries.getQueryData(key)).toMatchObject({ jobs: [{ state: "succeeded" }, { state: "running" }] });
});
