import { Button, Group, Stack, Text } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate, useParams } from "@tanstack/react-router";
import { acceptInvitation, declineInvitation, linkedInvitationQuery } from "@/api/account";
import { meQuery, type SignedIn } from "@/api/session";
import { ErrorNote } from "@/components/ErrorNote";
import { Loaded } from "@/components/Loaded";
import { moment } from "@/science/format";
import { Entry, ToSignIn } from "./Entry";
import { SignUpForm } from "./SignUpForm";

/** Where the link of an invitation leads: accept as who one is, sign in, or make an account. */
export function InvitationPage() {
  const { text } = useParams({ from: "/invitations/$text" });
  const offer = useQuery(linkedInvitationQuery(text));
  const me = useQuery(meQuery);
  const queries = useQueryClient();
  const navigate = useNavigate();
  const accept = useMutation({
    mutationFn: () => acceptInvitation(text),
    onSuccess: async (project) => {
      await queries.invalidateQueries({ queryKey: ["projects"] });
      await navigate({ to: "/projects/$project", params: { project: project.id } });
    },
  });
  const decline = useMutation({ mutationFn: () => declineInvitation(text) });
  const signedUp = async (reached: SignedIn) => {
    if (reached !== "done") return;
    await queries.query({ ...meQuery, staleTime: 0 });
    accept.mutate();
  };

  return (
    <Entry title="Invitation">
      {decline.isSuccess ? (
        <Text size="sm" role="status">The invitation is declined.</Text>
      ) : (
        <Loaded query={offer} what="the invitation">
          {(it) => (
            <Stack gap="md">
              <Text size="sm">
                {it.invited_by ?? "Somebody"} offers {it.email} the role <strong>{it.role}</strong> in the project{" "}
                <strong>{it.project_name}</strong>. The link works until {moment(it.expires_at)}.
              </Text>
              <ErrorNote error={accept.error ?? decline.error} doing="Answering" plain />
              {me.data ? (
                <>
                  <Text size="sm">You are signed in as <strong>{me.data.username}</strong> ({me.data.email}).</Text>
                  <Button size="sm" onClick={() => accept.mutate()} loading={accept.isPending} data-testid="accept">Accept as {me.data.username}</Button>
                </>
              ) : !it.may_sign_up ? (
                <Text size="sm">
                  <ToSignIn next={`/invitations/${text}`} /> with the account of this address to accept. To make one, open the link in the
                  mail that was sent there.
                </Text>
              ) : (
                <>
                  <Text size="sm">Make an account to accept, or <ToSignIn next={`/invitations/${text}`} /> with the one you have.</Text>
                  <SignUpForm invitation={{ text, email: it.email }} onDone={signedUp} />
                </>
              )}
              <Group><Button variant="subtle" color="gray" onClick={() => decline.mutate()} loading={decline.isPending}>Decline</Button></Group>
            </Stack>
          )}
        </Loaded>
      )}
    </Entry>
  );
}
