import { ActionIcon, Badge, Button, Menu, Tooltip, useComputedColorScheme, useMantineColorScheme } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, Outlet, useLocation, useNavigate } from "@tanstack/react-router";
import { useEffect } from "react";
import { meQuery, signOut } from "@/api/session";
import { ShortcutsButton } from "@/components/Shortcuts";
import { useLiveUpdatesOff } from "@/live/hooks";
import { Bell } from "./Bell";
import styles from "./Shell.module.css";

/** The frame of every page behind the sign-in. */
export function Shell() {
  const { data: me } = useQuery(meQuery);
  const navigate = useNavigate();
  const location = useLocation();

  useEffect(() => {
    // Without the second condition a navigation that has begun would be begun again without end.
    if (me === null && location.pathname !== "/login") void navigate({ to: "/login", search: { next: location.href } });
  }, [me, navigate, location.href, location.pathname]);

  return (
    <>
      <a className="skip-link" href="#main">Skip to content</a>
      <header className={styles.header}>
        <Link to="/" className={styles.brand} aria-label="InterpretabilityWorkbench: your projects">
          <img src={`${import.meta.env.BASE_URL}favicon.svg`} alt="" />
          <span>InterpretabilityWorkbench</span>
        </Link>
        <div className={styles.spacer} />
        <LiveUpdatesBadge />
        <Button component={Link} to="/jobs" variant="subtle" color="gray">Jobs</Button>
        {me && <Bell />}
        <ShortcutsButton />
        <SchemeToggle />
        {me && <UserMenu username={me.username} staff={me.is_staff} />}
      </header>
      <main id="main" tabIndex={-1} className={styles.main}>
        <Outlet />
      </main>
    </>
  );
}

function LiveUpdatesBadge() {
  const off = useLiveUpdatesOff();
  return (
    <span role="status">
      {off && (
        <Tooltip label="The connection for live updates is lost and being tried again. Until then the page asks every few seconds.">
          <Badge color="orange" variant="outline" radius="sm" tt="none" tabIndex={0} data-testid="live-updates-off">live updates off</Badge>
        </Tooltip>
      )}
    </span>
  );
}

function SchemeToggle() {
  const { setColorScheme } = useMantineColorScheme();
  const scheme = useComputedColorScheme("light");
  const other = scheme === "dark" ? "light" : "dark";
  return (
    <ActionIcon variant="subtle" color="gray" size="md" onClick={() => setColorScheme(other)} aria-label={`Use ${other} colours`} title={`Use ${other} colours`} data-testid="scheme">
      <span aria-hidden="true">{scheme === "dark" ? "☀" : "☾"}</span>
    </ActionIcon>
  );
}

function UserMenu({ username, staff }: { username: string; staff: boolean }) {
  const queries = useQueryClient();
  const navigate = useNavigate();
  const { clearColorScheme } = useMantineColorScheme();
  const leave = useMutation({
    mutationFn: signOut,
    onSuccess: async () => {
      queries.clear();
      queries.setQueryData(meQuery.queryKey, null);
      await navigate({ to: "/login" });
    },
  });
  return (
    <Menu position="bottom-end" width={200}>
      <Menu.Target>
        <Button variant="default" data-testid="user-menu">{username}</Button>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Item component={Link} to="/profile" data-testid="profile">Profile and API tokens</Menu.Item>
        <Menu.Item onClick={() => clearColorScheme()}>Colours as the system’s</Menu.Item>
        <Menu.Item component="a" href="/api/v1/docs/" target="_blank">API reference</Menu.Item>
        {staff && <Menu.Item component="a" href="/admin/" target="_blank">Administration</Menu.Item>}
        <Menu.Divider />
        <Menu.Item onClick={() => leave.mutate()} disabled={leave.isPending} data-testid="sign-out">Sign out</Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
