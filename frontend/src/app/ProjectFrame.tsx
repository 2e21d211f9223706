import { Badge, Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { Link, Outlet, useLocation, useParams } from "@tanstack/react-router";
import { useEffect, useRef } from "react";
import { isActive, jobsQuery } from "@/api/jobs";
import { projectQuery } from "@/api/projects";
import { POLLING, useJobUpdates } from "@/live/hooks";
import styles from "./Shell.module.css";

const PAGES = [
  { to: "/projects/$project", label: "Home", exact: true },
  { to: "/projects/$project/models", label: "Models" },
  { to: "/projects/$project/recordings", label: "Recordings" },
  { to: "/projects/$project/saes", label: "SAEs" },
  { to: "/projects/$project/lab", label: "Patch lab" },
  { to: "/projects/$project/graphs", label: "Graphs" },
  { to: "/projects/$project/patches", label: "Patches" },
  { to: "/projects/$project/jobs", label: "Jobs" },
  { to: "/projects/$project/members", label: "Members" },
] as const;

/** A project's pages, with their navigation, and its jobs kept up to date. */
export function ProjectFrame() {
  const { project } = useParams({ from: "/signed-in/projects/$project" });
  const live = useJobUpdates([project]);
  const { data } = useQuery(projectQuery(project));
  const jobs = useQuery({ ...jobsQuery({ project }), refetchInterval: live ? false : POLLING });
  const active = jobs.data?.filter(isActive).length ?? 0;
  const nav = useRef<HTMLElement>(null);
  const { pathname } = useLocation();
  // On a narrow screen the navigation scrolls sideways; where one is must not lie outside.
  useEffect(() => {
    nav.current?.querySelector('[data-status="active"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [pathname]);

  return (
    <div className={styles.frame}>
      <nav ref={nav} className={styles.nav} aria-label="Project">
        <Text size="xs" c="dimmed" fw={600} px={10} pb={4} className={styles.wide} truncate title={data?.name}>{data?.name}</Text>
        <ul>
          {PAGES.map((page) => (
            <li key={page.to}>
              <Link to={page.to} params={{ project }} className={styles.link} activeOptions={{ exact: "exact" in page, includeSearch: false }}>
                {page.label}
                {page.label === "Jobs" && active > 0 && (
                  <Badge size="xs" variant="light" aria-label={`${active} unfinished`}>{active}</Badge>
                )}
              </Link>
            </li>
          ))}
        </ul>
      </nav>
      <div className={styles.content}>
        <Outlet />
      </div>
    </div>
  );
}
