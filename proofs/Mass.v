(* The anchor's share of attention: out = (1 - w) O_context + w O_anchor, w = max(g, a), as in attention/naive.py.
   A softmax runs over a list of (logit, value); vectors are treated one component at a time. *)
From Coq Require Import Reals List Lia Lra.
Import ListNotations.
Open Scope R_scope.

Definition sum (l : list R) : R := fold_right Rplus 0 l.
Definition expsum (logits : list R) : R := sum (map exp logits).
Definition lse (logits : list R) : R := ln (expsum logits).
Definition sigmoid (x : R) : R := / (1 + exp (- x)).
Definition mass (anchor context : list R) : R := expsum anchor / (expsum anchor + expsum context).
Definition output (l : list (R * R)) : R :=
  sum (map (fun p => exp (fst p) * snd p) l) / expsum (map fst l).
Definition weight (g a : R) : R := Rmax g a.
Definition attend (g : R) (anchor context : list (R * R)) : R :=
  let w := weight g (mass (map fst anchor) (map fst context)) in
  (1 - w) * output context + w * output anchor.

Lemma sum_app l m : sum (l ++ m) = sum l + sum m.
Proof. induction l as [|x l IH]; simpl; [lra|]. fold (sum (l ++ m)) (sum l). lra. Qed.

Lemma ratio_le a b c d : 0 < b -> 0 < d -> a * d <= c * b -> a / b <= c / d.
Proof.
  intros B D H. apply Rmult_le_reg_r with (b * d); [nra|].
  replace (a / b * (b * d)) with (a * d) by (field; lra).
  replace (c / d * (b * d)) with (c * b) by (field; lra). exact H.
Qed.

Lemma expsum_cons x l : expsum (x :: l) = exp x + expsum l.
Proof. reflexivity. Qed.

Lemma expsum_app l m : expsum (l ++ m) = expsum l + expsum m.
Proof. unfold expsum. now rewrite map_app, sum_app. Qed.

Lemma expsum_nonneg l : 0 <= expsum l.
Proof.
  induction l as [|x l IH]; [apply Rle_refl|].
  rewrite expsum_cons. pose proof (exp_pos x). lra.
Qed.

Lemma expsum_pos l : l <> [] -> 0 < expsum l.
Proof.
  destruct l as [|x l]; [easy|]. intros _.
  rewrite expsum_cons. pose proof (exp_pos x). pose proof (expsum_nonneg l). lra.
Qed.

Lemma expsum_repeat s n : expsum (repeat s n) = INR n * exp s.
Proof.
  induction n as [|n IH]; [unfold expsum; simpl; lra|].
  cbn [repeat]. rewrite expsum_cons, IH, S_INR. lra.
Qed.

Theorem mass_is_sigmoid anchor context :
  anchor <> [] -> context <> [] -> mass anchor context = sigmoid (lse anchor - lse context).
Proof.
  intros A C. apply expsum_pos in A, C. unfold mass, sigmoid, lse.
  replace (- (ln (expsum anchor) - ln (expsum context))) with (ln (expsum context) + - ln (expsum anchor))
    by ring.
  rewrite exp_plus, exp_Ropp, !exp_ln by assumption. field. lra.
Qed.

Lemma mass_bounds anchor context : anchor <> [] -> 0 < mass anchor context <= 1.
Proof.
  intros A. apply expsum_pos in A. pose proof (expsum_nonneg context). unfold mass. split.
  - apply Rdiv_lt_0_compat; lra.
  - apply Rmult_le_reg_r with (expsum anchor + expsum context); [lra|].
    unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
Qed.

Lemma expsum_bound context s : (forall t, In t context -> t <= s) -> expsum context <= INR (length context) * exp s.
Proof.
  induction context as [|t context IH]; intros H; [unfold expsum; simpl; lra|].
  cbn [length]. rewrite expsum_cons, S_INR.
  assert (I : expsum context <= INR (length context) * exp s) by (apply IH; intros u U; apply H; now right).
  assert (exp t <= exp s).
  { destruct (Rle_lt_or_eq_dec t s) as [L | ->]; [apply H; now left | | lra].
    apply Rlt_le, exp_increasing, L. }
  lra.
Qed.

(* No context logit is more than `gap` above an anchor logit. *)
Theorem anchor_mass anchor context gap :
  anchor <> [] -> (forall s t, In s anchor -> In t context -> t - s <= gap) ->
  mass anchor context >= INR (length anchor) / (INR (length anchor) + INR (length context) * exp gap).
Proof.
  intros A H. apply Rle_ge.
  assert (K : INR (length anchor) * expsum context <= INR (length context) * exp gap * expsum anchor).
  { clear A. induction anchor as [|s anchor IH]; [unfold expsum; simpl; lra|].
    cbn [length]. rewrite S_INR, expsum_cons.
    assert (I : INR (length anchor) * expsum context <= INR (length context) * exp gap * expsum anchor).
    { apply IH. intros u t U. apply H. now right. }
    assert (B : expsum context <= INR (length context) * exp (gap + s)).
    { apply expsum_bound. intros t T. specialize (H s t (or_introl eq_refl) T). lra. }
    rewrite exp_plus in B. lra. }
  pose proof (expsum_pos _ A) as P. pose proof (expsum_nonneg context) as Q.
  assert (N : 0 < INR (length anchor)).
  { destruct anchor; [easy|]. apply lt_0_INR. simpl. lia. }
  assert (M : 0 <= INR (length context) * exp gap).
  { apply Rmult_le_pos; [apply pos_INR | apply Rlt_le, exp_pos]. }
  unfold mass. apply ratio_le; lra.
Qed.

Theorem anchor_mass_tight A N s gap :
  (0 < A)%nat ->
  mass (repeat s A) (repeat (s + gap) N) = INR A / (INR A + INR N * exp gap).
Proof.
  intros H. apply lt_0_INR in H. unfold mass. rewrite !expsum_repeat, exp_plus.
  pose proof (exp_pos s). pose proof (exp_pos gap). pose proof (pos_INR N).
  assert (0 <= INR N * exp gap) by (apply Rmult_le_pos; lra).
  field. split; [lra|]. replace (INR A * exp s + INR N * (exp s * exp gap))
    with ((INR A + INR N * exp gap) * exp s) by ring.
  apply Rgt_not_eq, Rmult_lt_0_compat; lra.
Qed.

Theorem weight_floor g a : weight g a >= g /\ weight g a >= a.
Proof. unfold weight. split; apply Rle_ge; [apply Rmax_l | apply Rmax_r]. Qed.

Theorem floor_mass g anchor context gap :
  anchor <> [] -> (forall s t, In s anchor -> In t context -> t - s <= gap) ->
  weight g (mass anchor context) >=
  Rmax g (INR (length anchor) / (INR (length anchor) + INR (length context) * exp gap)).
Proof.
  intros A H. apply Rle_ge, Rle_max_compat_l, Rge_le, anchor_mass; assumption.
Qed.

(* g = 0 is one softmax over the anchor's and the context's tokens. *)
Theorem no_floor_is_concat anchor context :
  anchor <> [] -> context <> [] -> attend 0 anchor context = output (anchor ++ context).
Proof.
  intros A C. unfold attend, weight.
  assert (A' : map fst anchor <> []) by (destruct anchor; easy).
  assert (C' : map fst context <> []) by (destruct context; easy).
  rewrite Rmax_right by (apply Rlt_le; pose proof (mass_bounds _ (map fst context) A'); lra).
  unfold output, mass. rewrite !map_app, sum_app, expsum_app.
  apply expsum_pos in A', C'. field. lra.
Qed.

(* Values within [lo, hi]: a softmax output is too. *)
Lemma output_bounds l lo hi :
  l <> [] -> (forall p, In p l -> lo <= snd p <= hi) -> lo <= output l <= hi.
Proof.
  intros N H.
  assert (P : 0 < expsum (map fst l)) by (apply expsum_pos; destruct l; easy).
  assert (K : lo * expsum (map fst l) <= sum (map (fun p => exp (fst p) * snd p) l) <= hi * expsum (map fst l)).
  { clear N P. induction l as [|p l IH]; [unfold expsum; simpl; lra|].
    cbn [map]. rewrite expsum_cons.
    change (sum (exp (fst p) * snd p :: ?r)) with (exp (fst p) * snd p + sum r).
    assert (I := IH (fun q Q => H q (or_intror Q))).
    specialize (H p (or_introl eq_refl)). pose proof (exp_pos (fst p)). cbn [sum fold_right].
    fold (sum (map (fun p => exp (fst p) * snd p) l)). nra. }
  unfold output. split; apply Rmult_le_reg_r with (expsum (map fst l)); try exact P;
    unfold Rdiv; rewrite Rmult_assoc, Rinv_l, Rmult_1_r; lra.
Qed.

(* Whatever two contexts say, however large their logits: they move the output by no more than (1 - g) of the range. *)
Theorem context_influence g anchor context context' lo hi :
  g <= 1 -> anchor <> [] -> context <> [] -> context' <> [] ->
  (forall p, In p (anchor ++ context ++ context') -> lo <= snd p <= hi) ->
  Rabs (attend g anchor context - attend g anchor context') <= (1 - g) * (hi - lo).
Proof.
  intros G A C C' H.
  assert (OA : lo <= output anchor <= hi).
  { apply output_bounds; [exact A|]. intros p P. apply H, in_or_app. now left. }
  assert (OC : lo <= output context <= hi).
  { apply output_bounds; [exact C|]. intros p P. apply H, in_or_app. right. apply in_or_app. now left. }
  assert (OC' : lo <= output context' <= hi).
  { apply output_bounds; [exact C'|]. intros p P. apply H, in_or_app. right. apply in_or_app. now right. }
  assert (A' : map fst anchor <> []) by (destruct anchor; easy).
  unfold attend, weight.
  pose proof (mass_bounds (map fst anchor) (map fst context) A') as M.
  pose proof (mass_bounds (map fst anchor) (map fst context') A') as M'.
  pose proof (Rmax_l g (mass (map fst anchor) (map fst context))) as W.
  pose proof (Rmax_l g (mass (map fst anchor) (map fst context'))) as W'.
  assert (U : Rmax g (mass (map fst anchor) (map fst context)) <= 1) by (apply Rmax_lub; lra).
  assert (U' : Rmax g (mass (map fst anchor) (map fst context')) <= 1) by (apply Rmax_lub; lra).
  set (w := Rmax g (mass (map fst anchor) (map fst context))) in *.
  set (w' := Rmax g (mass (map fst anchor) (map fst context'))) in *.
  set (o := output anchor) in *. set (c := output context) in *. set (c' := output context') in *.
  assert (B1 : (1 - w) * (c - o) <= (1 - g) * (hi - o)) by nra.
  assert (B2 : (1 - w) * (o - c) <= (1 - g) * (o - lo)) by nra.
  assert (B3 : (1 - w') * (c' - o) <= (1 - g) * (hi - o)) by nra.
  assert (B4 : (1 - w') * (o - c') <= (1 - g) * (o - lo)) by nra.
  apply Rabs_le. split; lra.
Qed.

Theorem context_influence_tight g lo hi :
  0 < g <= 1 -> lo <= hi -> exists anchor context context',
  anchor <> [] /\ context <> [] /\ context' <> [] /\
  (forall p, In p (anchor ++ context ++ context') -> lo <= snd p <= hi) /\
  Rabs (attend g anchor context - attend g anchor context') = (1 - g) * (hi - lo).
Proof.
  intros G L. exists [(0, lo)], [(- ln g, hi)], [(- ln g, lo)].
  repeat split; try easy.
  1, 2: simpl in H; destruct H as [<- | [<- | [<- | []]]]; simpl; lra.
  assert (E : exp (- ln g) = / g) by (rewrite exp_Ropp, exp_ln; lra).
  unfold attend, weight, mass, output, expsum. cbn [map fst snd sum fold_right].
  rewrite E, exp_0. rewrite Rmax_left.
  - replace ((1 - g) * ((/ g * hi + 0) / (/ g + 0)) + g * ((1 * lo + 0) / (1 + 0)) -
      ((1 - g) * ((/ g * lo + 0) / (/ g + 0)) + g * ((1 * lo + 0) / (1 + 0)))) with ((1 - g) * (hi - lo))
      by (field; lra).
    apply Rabs_pos_eq, Rmult_le_pos; lra.
  - replace ((1 + 0) / (1 + 0 + (/ g + 0))) with (g / (g + 1)) by (field; lra).
    apply Rmult_le_reg_r with (g + 1); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.
