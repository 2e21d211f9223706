import { Button, Text } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useParams } from "@tanstack/react-router";
import { verifyEmail } from "@/api/session";
import { ErrorNote } from "@/components/ErrorNote";
import { Entry, ToSignIn } from "./Entry";

/** Confirming takes a click: programs that follow the links of mails should not do it. */
export function VerifyEmail() {
  const { key } = useParams({ from: "/verify-email/$key" });
  const confirm = useMutation({ mutationFn: () => verifyEmail(key) });
  return (
    <Entry title="Confirm your e-mail address">
      <ErrorNote error={confirm.error} doing="Confirming" plain />
      {confirm.isSuccess ? (
        <Text size="sm" role="status">Your address is confirmed.</Text>
      ) : (
        <Button size="sm" onClick={() => confirm.mutate()} loading={confirm.isPending}>Confirm</Button>
      )}
      <ToSignIn />
    </Entry>
  );
}
