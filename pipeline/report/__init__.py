"""From evaluations to a page. Each part is made from those before it.

read        eval_results, find_runs, annotators, judges · ancestors, cost, funnel, gates
measured    statistics, multiple_testing, agreement, text_metrics · aggregate, changes, slices,
            distributions, benchmarks, chats, sanity_checks
concluded   verdict: with the above this is report.json; comparison has its own, of any runs' models
shown       tables/ and figures/, from report.json alone, with the shapes in table, svg, formatting
written     page with header, reliability, answers and examples; markdown, the same as Markdown;
            comparison_page; sweep_page
"""
