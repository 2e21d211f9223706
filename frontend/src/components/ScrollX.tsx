import { useEffect, useRef, useState, type CSSProperties, type ReactNode } from "react";

interface ScrollXProps {
  /** Also a panel. */
  panel?: boolean;
  style?: CSSProperties;
  children: ReactNode;
}

/** Something that may be wider than its place; while it is, the keyboard can get there and scroll it. */
export function ScrollX({ panel = false, style, children }: ScrollXProps) {
  const area = useRef<HTMLDivElement>(null);
  const [wider, setWider] = useState(false);
  useEffect(() => {
    const element = area.current;
    if (!element) return;
    const observer = new ResizeObserver(() => setWider(element.scrollWidth > element.clientWidth));
    observer.observe(element);
    for (const child of element.children) observer.observe(child);
    return () => observer.disconnect();
  }, []);
  return (
    <div ref={area} className={panel ? "panel scroll-x" : "scroll-x"} style={style} {...(wider ? { tabIndex: 0, role: "group", "aria-label": "scrolls sideways" } : {})}>
      {children}
    </div>
  );
}
