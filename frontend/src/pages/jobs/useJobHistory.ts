import { useQuery } from "@tanstack/react-query";
import { jobEventsAfter } from "@/api/jobs";
import type { JobEvent } from "@/api/types";
import { POLLING, useJobLog, useLiveUpdatesOff } from "@/live/hooks";

const NONE: readonly JobEvent[] = [];

/** A job's history: pushed while the socket is open, asked for while it is not. */
export function useJobHistory(job: string, active: boolean): readonly JobEvent[] {
  const log = useJobLog(job);
  const off = useLiveUpdatesOff();
  const polled = useQuery({
    queryKey: ["job-events", job],
    queryFn: () => jobEventsAfter(job, 0),
    enabled: off,
    refetchInterval: active ? POLLING : false,
  });
  return off ? (polled.data ?? log.events) : log.events.length > 0 ? log.events : (polled.data ?? NONE);
}
