import { Text } from "@mantine/core";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { meQuery, siteQuery, type SignedIn } from "@/api/session";
import { Loaded } from "@/components/Loaded";
import { Entry, ToSignIn } from "./Entry";
import { SignUpForm } from "./SignUpForm";

/** Making an account without an invitation, where the server allows it. */
export function SignUp() {
  const { next } = useSearch({ from: "/sign-up" });
  const site = useQuery(siteQuery);
  const queries = useQueryClient();
  const navigate = useNavigate();
  const [waiting, setWaiting] = useState(false);
  const proceed = async (reached: SignedIn) => {
    if (reached === "verify-email") {
      setWaiting(true);
      return;
    }
    queries.clear();
    await queries.query({ ...meQuery, staleTime: 0 });
    await navigate({ href: next ?? "/" });
  };
  return (
    <Entry title="Make an account">
      {waiting ? (
        <Text size="sm">A link was sent to your e-mail address. Follow it, then sign in.</Text>
      ) : (
        <Loaded query={site} what="what this server offers">
          {(config) =>
            config.account.is_open_for_signup ? (
              <SignUpForm onDone={proceed} />
            ) : (
              <Text size="sm">Accounts are made by invitation here. Ask the owner of a project, or an administrator.</Text>
            )
          }
        </Loaded>
      )}
      <ToSignIn next={next} />
    </Entry>
  );
}
