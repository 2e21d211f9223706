import { Container, Loader, Stack, Text, Title } from "@mantine/core";
import { Link, useRouter, type ErrorComponentProps } from "@tanstack/react-router";
import { asApiError } from "@/api/errors";
import { ErrorNote } from "@/components/ErrorNote";

export function Pending() {
  return (
    <Stack align="center" p="xl" aria-busy="true">
      <Loader size="sm" aria-label="Loading" />
    </Stack>
  );
}

export function Missing() {
  return (
    <Container size="sm" py="xl">
      <Title order={1}>There is nothing at this address</Title>
      <Text>
        It does not exist, or you may not see it. <Link to="/">Go to your projects.</Link>
      </Text>
    </Container>
  );
}

/** A page that could not be shown: what it was waiting for failed, or the page itself did. */
export function Failed({ error, reset }: ErrorComponentProps) {
  const router = useRouter();
  if (asApiError(error).status === 404) return <Missing />;
  const retry = () => {
    reset();
    void router.invalidate();
  };
  return (
    <Container size="sm" py="xl">
      <ErrorNote error={error} doing="Showing this page" retry={retry} />
    </Container>
  );
}
