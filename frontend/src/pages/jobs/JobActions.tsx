import { Button } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { cancelJob, isActive, retryJob } from "@/api/jobs";
import type { Job } from "@/api/types";
import { useInvalidate } from "@/api/useInvalidate";
import { ErrorNote } from "@/components/ErrorNote";
import { CloneJob } from "./CloneJob";

/** Cancel or retry, whichever applies. */
export function JobActions({ job }: { job: Job }) {
  const invalidate = useInvalidate();
  const refresh = () => invalidate("jobs");
  const cancel = useMutation({ mutationFn: () => cancelJob(job.id), onSettled: refresh });
  const retry = useMutation({ mutationFn: () => retryJob(job.id), onSettled: refresh });
  return (
    <>
      {job.cancellable && (
        <Button variant="default" onClick={() => cancel.mutate()} loading={cancel.isPending} data-testid="cancel-job">Cancel</Button>
      )}
      {job.retryable && (
        <Button variant="default" onClick={() => retry.mutate()} loading={retry.isPending} data-testid="retry-job">Try again</Button>
      )}
      {job.cloneable && !isActive(job) && <CloneJob job={job} />}
      <ErrorNote error={cancel.error ?? retry.error} doing={cancel.error ? "Cancelling" : "Trying again"} />
    </>
  );
}
